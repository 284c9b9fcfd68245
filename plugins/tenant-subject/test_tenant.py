import json
import unittest

from tenant import Reject, slim, subject


class Subject(unittest.TestCase):
    def of(self, message, field="tenant"):
        return subject(json.dumps(message).encode(), "article.42", field)

    def test_the_tenant_comes_first(self):
        self.assertEqual(self.of({"tenant": "acme"}), "acme.article.42")
        self.assertEqual(self.of({"tenant": "grün-42_a"}), "grün-42_a.article.42")
        self.assertEqual(self.of({"tenant": 7}), "7.article.42")

    def test_it_may_lie_deeper(self):
        self.assertEqual(self.of({"site": {"tenant": "acme"}}, "site.tenant"), "acme.article.42")

    def test_without_a_tenant_it_is_rejected(self):
        for message in [{}, {"tenant": None}, {"site": "acme"}, {"site": {}}]:
            for field in ["tenant", "site.tenant"]:
                with self.assertRaisesRegex(Reject, f'no "{field}"'):
                    self.of(message, field)

    def test_what_is_not_one_token_fails(self):
        for tenant in ["", "a.b", "*", ">", "a b", "a\tb", "a\nb", "a\u00a0b", "a\x00", "a\ud800", True, 1.5, [], {}]:
            with self.assertRaisesRegex(ValueError, '"tenant" is not one token', msg=repr(tenant)):
                self.of({"tenant": tenant})


class Slim(unittest.TestCase):
    def of(self, message, *fields):
        return json.loads(slim(json.dumps(message).encode(), fields))

    def test_only_the_named_fields_stay(self):
        message = {"id": 42, "type": "article", "tenant": "acme", "body": "...", "author": {"email": "jane@example.org"}}
        self.assertEqual(self.of(message, "id", "type", "tenant"), {"id": 42, "type": "article", "tenant": "acme"})

    def test_a_field_may_lie_deeper(self):
        message = {"site": {"tenant": "acme", "key": "s3cret"}, "id": 1}
        self.assertEqual(self.of(message, "site.tenant"), {"site": {"tenant": "acme"}})
        for fields in [("site", "site.tenant"), ("site.tenant", "site")]:
            self.assertEqual(self.of(message, *fields), {"site": message["site"]})

    def test_what_is_missing_is_left_out(self):
        self.assertEqual(self.of({"id": 42, "site": 1}, "id", "type", "site.tenant"), {"id": 42})

    def test_what_json_does_not_have_fails(self):
        for number in [b"NaN", b"1e999"]:
            with self.assertRaises(ValueError):
                slim(b'{"id":' + number + b"}", ["id"])


class Malformed(unittest.TestCase):
    def test_it_fails_in_both_hooks(self):
        for payload in [b"", b"{", b"\xff", b"[1]", b"null", b'"acme"']:
            with self.assertRaisesRegex(ValueError, "the message is not (a )?JSON"):
                slim(payload, ["id"])
            with self.assertRaisesRegex(ValueError, "the message is not (a )?JSON"):
                subject(payload, "article.42", "tenant")


if __name__ == "__main__":
    unittest.main()
