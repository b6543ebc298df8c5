"""HOST:PATH, as `move` takes it."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from blockmig.cli.remote_place import BadPlace, is_remote, parse_place


class RemotePlaceTests(SynchronousTestCase):
    def test_host_and_path_are_told_apart_at_the_first_colon(self):
        for text, host, path in (
            ("web2:/x/web.img", "web2", "/x/web.img"),
            ("root@web2.example:/dev/vg0/a:b", "root@web2.example", "/dev/vg0/a:b"),
            ("web2:web.img", "web2", "web.img"),
            ("web2:~/web.img", "web2", "web.img"),
            ("[2001:db8::7]:/x", "[2001:db8::7]", "/x"),
            ("root@[2001:db8::7]:/x y", "root@[2001:db8::7]", "/x y"),
        ):
            place = parse_place(text)
            self.assertEqual((host, path), (place.host, place.path))

    def test_ssh_gets_an_address_without_brackets(self):
        self.assertEqual("root@2001:db8::7", parse_place("root@[2001:db8::7]:/x").ssh_host)

    def test_the_address_in_records_can_be_given_again(self):
        for text in ("web2:/x/web.img", "root@[::1]:/x", "web2:images/web.img"):
            place = parse_place(text)
            self.assertTrue(str(place).startswith("ssh://"))
            self.assertEqual(place, parse_place(str(place)))
            self.assertEqual(text, place.shown)

    def test_what_names_no_place_is_refused(self):
        for text, words in (
            ("/x/web.img", "is not HOST:PATH"),
            ("./a:b", "is not HOST:PATH"),
            (":/x", "names no host"),
            ("root@:/x", "names no host"),
            ("web2:", "names no file"),
            ("web2:/images/", "names no file"),
            ("-oProxyCommand=x:/x", "cannot be a host"),
            ("[-oProxyCommand=x]:/x", "cannot be a host"),
            ("web 2:/x", "cannot be a host"),
            ("web2:~other/x", "cannot be a path"),
            ("web2:/~/x", "cannot be a path"),
            ("nbd://web2/x", "is a URI"),
            ("ssh://web2", "names no file"),
        ):
            error = self.assertRaises(BadPlace, parse_place, text)
            self.assertIn(words, str(error), text)

    def test_a_file_with_a_slash_before_its_colon_is_here(self):
        for text in ("./a:b", "/dev/disk/by-path/pci-0000:00", "web.img"):
            self.assertFalse(is_remote(text), text)
        for text in ("web2:x", "ssh://web2/x", "[::1]:/x"):
            self.assertTrue(is_remote(text), text)
