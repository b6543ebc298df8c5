"""Every class that declares an interface provides it."""

from __future__ import annotations

import os

from twisted.application.service import IService, IServiceMaker
from twisted.internet.interfaces import (
    IProtocol,
    IProtocolFactory,
    IPullProducer,
    IPushProducer,
    IReadDescriptor,
)
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import ILogObserver
from twisted.plugin import IPlugin
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyClass, verifyObject

from blockmig.cli.logs import LineObserver
from blockmig.cli.tap import OperationService
from blockmig.cli.tap import Options as TapOptions
from blockmig.client import ClientConnection, ClientFactory, Destination
from blockmig.interfaces import IDisk, IRecordedDisk, IUnlinkableDisk
from blockmig.migration.destination.export import MigrationExport
from blockmig.migration.destination.handoff_export import HandoffExport
from blockmig.migration.destination.receiver import Receiver
from blockmig.migration.source.attempt import OpeningAttempt
from blockmig.migration.source.sender import Sender
from blockmig.runtime import Runtime
from blockmig.server import IConnectionOwner, IExportHandler, Server, ServerConnection
from blockmig.server.forwarding import Forwarding
from blockmig.server.session import Session
from blockmig.storage import BlockDisk, FileDisk
from blockmig.syscalls import SYSTEM
from blockmig.testing import MemoryDisk, UnlinkableMemoryDisk, synchronous
from blockmig.transport import IPayloadReceiver, PayloadReader, RegionProducer
from blockmig.transport.outgoing import _SocketSink, _TransportSink
from twisted.plugins.blockmig_plugin import blockmig as plugin

from .support import ADDRESS


class InterfaceTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.receiver = Receiver(MemoryDisk(b"x"), runtime=Runtime(self.clock, synchronous))
        self.sender = Sender(
            MemoryDisk(b"x"), Destination(None), runtime=Runtime(self.clock, synchronous)
        )

    def test_connections_and_phases_provide_their_interfaces(self):
        connection = self.receiver.factory().buildProtocol(ADDRESS)
        self.assertIsInstance(connection, ServerConnection)
        self.assertTrue(verifyObject(IProtocol, connection))
        connection.makeConnection(StringTransport())
        self.assertTrue(verifyObject(IPayloadReceiver, connection._phase))
        self.assertTrue(verifyClass(IPayloadReceiver, Session))
        self.assertTrue(verifyClass(IPayloadReceiver, Forwarding))
        self.assertTrue(
            verifyObject(IProtocol, OpeningAttempt(self.sender._context, None).connection)
        )

    def test_factories_provide_their_interface(self):
        self.assertTrue(verifyObject(IProtocolFactory, self.receiver.factory()))
        self.assertTrue(verifyObject(IProtocolFactory, ClientFactory(None)))

    def test_the_factories_of_receivers_and_servers_own_their_connections(self):
        server = Server(MemoryDisk(b"x"), runtime=Runtime(self.clock, synchronous))
        for part in (self.receiver, server):
            self.assertTrue(verifyObject(IConnectionOwner, part.factory()))
            self.assertTrue(verifyObject(IProtocolFactory, part.factory()))

    def test_producers_provide_their_interfaces(self):
        producer = RegionProducer(StringTransport(), lambda error: None, system=SYSTEM)
        self.assertTrue(verifyObject(IPushProducer, producer))
        self.assertTrue(verifyClass(IPushProducer, RegionProducer))
        self.assertTrue(verifyObject(IPullProducer, _SocketSink(producer)))
        self.assertTrue(verifyObject(IPushProducer, _TransportSink(producer)))

    def test_the_payload_reader_provides_its_interface(self):
        reader = PayloadReader(self.clock, StringTransport(), None, 28, SYSTEM)
        self.assertTrue(verifyObject(IReadDescriptor, reader))
        self.assertTrue(verifyClass(IReadDescriptor, PayloadReader))

    def test_disks_provide_their_interfaces(self):
        path = self.mktemp()
        with FileDisk(path, size=5) as disk:
            self.assertTrue(verifyObject(IDisk, disk))
            self.assertTrue(verifyObject(IUnlinkableDisk, disk))
            self.assertTrue(verifyObject(IRecordedDisk, disk))
        self.assertTrue(verifyClass(IUnlinkableDisk, FileDisk))
        self.assertTrue(verifyClass(IRecordedDisk, FileDisk))
        self.assertTrue(verifyClass(IRecordedDisk, BlockDisk))
        self.assertTrue(verifyClass(IDisk, BlockDisk, tentative=False))
        self.assertFalse(IUnlinkableDisk.implementedBy(BlockDisk))
        os.unlink(path)

    def test_disk_doubles_provide_their_interfaces(self):
        self.assertTrue(verifyObject(IDisk, MemoryDisk(b"x")))
        self.assertTrue(verifyObject(IUnlinkableDisk, UnlinkableMemoryDisk(b"x")))

    def test_export_handlers_provide_their_interface(self):
        handler = self.receiver.factory().settings.lookup("")
        self.assertIsInstance(handler, MigrationExport)
        self.assertTrue(verifyObject(IExportHandler, handler))
        side = self.receiver.factory().settings.lookup(".handoff")
        self.assertIsInstance(side, HandoffExport)
        self.assertTrue(verifyObject(IExportHandler, side))

    def test_client_connections_provide_their_interface(self):
        self.assertTrue(
            verifyObject(IProtocol, ClientConnection(None, None, self.sender._context.runtime))
        )

    def test_the_plugin_and_its_service_provide_their_interfaces(self):
        self.assertTrue(verifyObject(IServiceMaker, plugin))
        self.assertTrue(verifyObject(IPlugin, plugin))
        options = TapOptions()
        options.parseOptions(["--file", "x"])
        service = OperationService(options.subOptions, self.clock)
        self.assertTrue(verifyObject(IService, service))

    def test_the_log_observer_provides_its_interface(self):
        self.assertTrue(verifyObject(ILogObserver, LineObserver(print, False, 0)))
