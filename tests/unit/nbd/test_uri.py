"""NBD URIs: parsing and printing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockmig.nbd import NBDURI, BadURI, parse_uri

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
paths = text.filter(lambda path: path and "\0" not in path[1:] and len(path.encode()) <= 107)
hosts = st.one_of(
    st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?", fullmatch=True),
    st.ip_addresses().map(str),
)


class URITests(SynchronousTestCase):
    @given(text, hosts, st.integers(1, 65535))
    def test_a_TCP_URI_survives_a_round_trip(self, export, host, port):
        uri = NBDURI(export=export, host=host, port=port)
        self.assertEqual(uri, parse_uri(str(uri)))

    @given(text, paths)
    def test_a_UNIX_socket_URI_survives_a_round_trip(self, export, socket):
        uri = NBDURI(export=export, socket=socket)
        self.assertEqual(uri, parse_uri(str(uri)))

    @given(text, hosts, paths, st.sampled_from([None, True, False]), text)
    def test_a_URI_with_TLS_survives_a_round_trip(self, export, host, path, verify, name):
        certificates = path.replace("\0", "")
        uri = NBDURI(export, host, 5, "", True, certificates, verify, name)
        self.assertEqual(uri, parse_uri(str(uri)))
        uri = NBDURI(export, "", 0, path, True, certificates, verify, name)
        self.assertEqual(uri, parse_uri(str(uri)))

    def test_URIs_with_TLS_are_parsed_as_libnbd_spells_them(self):
        for given_, expected in {
            "nbds://host": NBDURI("", "host", 10809, tls=True),
            "nbds+unix:///x?socket=/s": NBDURI("x", socket="/s", tls=True),
            "nbds://host/x?tls-certificates=/etc/pki": NBDURI(
                "x", "host", 10809, tls=True, certificates="/etc/pki"
            ),
            "nbds+unix:///?socket=/s&tls-certificates=pki&tls-hostname=there": NBDURI(
                socket="/s", tls=True, certificates="pki", tls_hostname="there"
            ),
            "nbds://host/?tls-verify-peer=false": NBDURI(
                "", "host", 10809, tls=True, verify_peer=False
            ),
            "nbds://host/?tls-verify-peer=1": NBDURI("", "host", 10809, tls=True, verify_peer=True),
        }.items():
            self.assertEqual(expected, parse_uri(given_), given_)

    def test_a_place_keeps_the_scheme_and_says_nothing_of_certificates(self):
        uri = parse_uri("nbds://h:5/x?tls-certificates=/p&tls-verify-peer=true&tls-hostname=n")
        self.assertEqual("nbds://h:5/x", str(uri.place))

    def test_what_would_be_ignored_without_TLS_is_refused_in_any_URI(self):
        for name, value in {
            "certificates": "/pki",
            "verify_peer": False,
            "tls_hostname": "there",
        }.items():
            self.assertRaises(BadURI, NBDURI, host="h", port=5, **{name: value})

    def test_examples_of_URIs_are_parsed(self):
        for given_, expected in {
            "nbd://host": NBDURI("", "host", 10809),
            "nbd://host/": NBDURI("", "host", 10809),
            "nbd://host:1/a/b": NBDURI("a/b", "host", 1),
            "nbd://host:1//a": NBDURI("/a", "host", 1),
            "nbd://[::1]:7/x": NBDURI("x", "::1", 7),
            "nbd://[2001:db8::1]": NBDURI("", "2001:db8::1", 10809),
            "nbd://[fe80::1%25eth0]:7/x": NBDURI("x", "fe80::1%eth0", 7),
            "nbd://[fe80::1%eth0]": NBDURI("", "fe80::1%eth0", 10809),
            "nbd://[fe80::1%ba0]": NBDURI("", "fe80::1%ba0", 10809),
            "nbd://h/%C3%A4%20": NBDURI("ä ", "h", 10809),
            "nbd+unix:///?socket=/run/s": NBDURI("", socket="/run/s"),
            "nbd+unix:///x?socket=/a%20b": NBDURI("x", socket="/a b"),
            "nbd+unix:///x+y?socket=/a+b": NBDURI("x+y", socket="/a+b"),
            "nbd+unix:///x%2By?socket=/a%2Bb%20c": NBDURI("x+y", socket="/a+b c"),
        }.items():
            self.assertEqual(expected, parse_uri(given_), given_)

    def test_the_zone_of_an_address_is_encoded(self):
        self.assertEqual("nbd://[fe80::1%25eth0]:7/", str(NBDURI("", "fe80::1%eth0", 7)))

    def test_bad_URIs_are_refused_with_the_reason_on_one_line(self):
        for bad, words in {
            "": "is not an NBD URI",
            "disk.img": "nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH is expected",
            "host:10809": "is not an NBD URI: write nbd://host:10809/",
            "[::1]:7": "is not an NBD URI: write nbd://[::1]:7/",
            "http://host/": "is not an NBD URI",
            "nbd://": "does not name a host",
            "nbd:///x": "does not name a host",
            "nbd://:10809/x": "does not name a host",
            "nbd://host:0/": "port 0",
            "nbd://host:65536/": "is not a URI: the port is a number up to 65535",
            "nbd://host:x/": "is not a URI",
            "nbd://[::1/": "is not a URI",
            "nbd://u@host/": "user name",
            "nbd://a%2Fb/": "cannot be a host",
            "nbd://a%00b/": "cannot be a host",
            "nbd://a%0Ab/": "cannot be a host",
            "nbd://a%23b/": "cannot be a host",
            "nbd://a b/": "cannot be a host",
            "nbd://a%25b/": "cannot be a host",
            "nbd://host/\udcff": "not UTF-8",
            "nbd+unix:///?socket=/\udcff": "not UTF-8",
            "nbds://host/?tls-hostname=%ff": "not UTF-8",
            "nbd://host/?%ff": "not UTF-8",
            "nbd://host/x#y": "fragment",
            "nbd://host/%ff": "not UTF-8",
            "nbd://host/?socket=/s": "nbd+unix",
            "nbd+unix:///x": "does not name a socket",
            "nbd+unix:///x?socket=": "does not name a socket",
            "nbd+unix://host/x?socket=/s": "three slashes",
            "nbd+unix:///?socket=/a%00b": "no path of a UNIX socket",
            f"nbd+unix:///?socket=/{'a' * 107}": "has 108: use a shorter one",
            "nbd+vsock://1/": "not supported",
            "nbds+vsock://1/": "not supported",
            "nbds://": "does not name a host",
            "nbds+unix:///x": "does not name a socket",
            "nbds://host/?socket=/s": "use the scheme nbds+unix",
            "nbds://alice@host/": "pre-shared keys",
            "nbds://host/?tls-psk-file=/k": "tls-psk-file: pre-shared keys are not supported",
            "nbds://host/?tls-username=a": "tls-username: pre-shared keys are not supported",
            "nbds://host/?tls-verify=true": "tls-verify: is not known; there are tls-certificates",
            "nbds://host/?tls-verify-peer=maybe": "'maybe' is neither true nor false",
            "nbds://host/?tls-certificates=": "tls-certificates has no value",
            "nbds://host/?tls-hostname=": "tls-hostname has no value",
            "nbds://host/?tls-certificates=/a%00b": "no path of a directory",
            "nbd://host/?tls-certificates=/pki": "does not use TLS, and has tls-certificates: use "
            "the scheme nbds",
            "nbd+unix:///?socket=/s&tls-verify-peer=true": "use the scheme nbds+unix",
        }.items():
            with self.subTest(bad):
                error = self.assertRaises(BadURI, parse_uri, bad)
                self.assertIn(words, str(error))
                self.assertNotIn("\n", str(error))

    def test_a_host_has_small_letters_however_it_is_written(self):
        for text in ("nbd://HOST/", "nbd://%48ost/", "NBD://hOS%54/"):
            self.assertEqual("host", parse_uri(text).host)
        self.assertEqual("fe80::a%Eth0", parse_uri("nbd://[FE80::A%25Eth0]/").host)

    def test_a_path_that_is_no_UTF_8_is_written_as_its_bytes(self):
        """The system allows it, and who listens there was not told where, but had a traceback."""
        uri = NBDURI(socket="/a\udcff")
        self.assertEqual("nbd+unix:///?socket=/a%FF", str(uri))
        self.assertEqual(uri, parse_uri(str(uri)))

    def test_a_path_that_the_system_does_not_allow_is_refused_in_any_URI(self):
        NBDURI(socket="/" + "ä" * 53)
        error = self.assertRaises(BadURI, NBDURI, socket="/" + "ä" * 54)
        self.assertIn("at most 107 bytes", str(error))
        self.assertRaises(BadURI, NBDURI, socket="/a\0b")

    @given(text)
    def test_nonsense_raises_only_BadURI(self, nonsense):
        for prefix in ("", "nbd://", "nbd+unix://", "nbds://h/?", "nbds+unix:///?socket=/s&tls-"):
            try:
                uri = parse_uri(prefix + nonsense)
            except BadURI:
                continue
            self.assertTrue(uri.host or uri.socket)
