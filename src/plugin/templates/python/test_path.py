import unittest

from path import with_path


class WithPath(unittest.TestCase):
    def test_the_path_is_added(self):
        self.assertEqual(with_path(b'{"id":42}', "article.42", "/de"), b'{"id":42,"path":"/de/article/42"}')

    def test_what_is_no_json_object_fails(self):
        for payload in [b"article", b"[42]"]:
            with self.assertRaises(ValueError):
                with_path(payload, "article.42", "")
