from twisted.application.service import ServiceMaker

blockmig = ServiceMaker(
    "blockmig", "blockmig.cli.tap", "Receive a disk over NBD, or serve one.", "blockmig"
)
