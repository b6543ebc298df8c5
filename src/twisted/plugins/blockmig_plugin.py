from twisted.application.service import ServiceMaker

blockmig = ServiceMaker(
    "blockmig", "blockmig.cli.tap", "Accept the migration of a disk over NBD.", "blockmig"
)
