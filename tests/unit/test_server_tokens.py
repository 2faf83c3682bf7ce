"""Which tokens are taken: each way of making a false one is refused by the same rules, at a time that is handed in."""

import json
import time

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from tests.issuer_kit import AUDIENCE, ISSUER, SigningKey, claims_of, written
from twinlock.errors import IssuerError, TokenError
from twinlock.protocol.limits import TOKEN_BYTES_MAX
from twinlock.server.tokens import (
    Claims,
    TokenRules,
    fitting_key,
    read_header,
    read_keys,
    subject_hash,
    verify_token,
)

RULES = TokenRules(ISSUER, AUDIENCE, 10_000)
KEYS = {name: SigningKey(name, algorithm) for name, algorithm in (("r", "RS256"), ("e", "ES256"), ("d", "EdDSA"))}
KEY = KEYS["e"]


def shown(*keys: SigningKey, **changes) -> bytes:
    return json.dumps({"keys": [{**key.jwk, **changes} for key in keys]}).encode()


def taken(token: str, jwks: bytes = b"", now_ms: int | None = None) -> Claims:
    """Do what the server does once it has an issuer's keys."""
    key = fitting_key(read_keys(jwks or shown(*KEYS.values())), read_header(token))
    if key is None:
        raise TokenError("no key")
    return verify_token(token, key, RULES, int(time.time() * 1000) if now_ms is None else now_ms)


@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256", "EdDSA"])
def test_every_algorithm_on_the_list_signs_in(algorithm):
    key = SigningKey("one", algorithm)

    assert taken(key.sign(claims_of()), shown(key)).subject == subject_hash(ISSUER, "ann")


def test_a_key_that_names_no_algorithm_serves_those_of_its_kind():
    jwk = {name: value for name, value in SigningKey("one", "PS256").jwk.items() if name not in ("alg", "use")}

    assert [key.algorithm for key in read_keys(json.dumps({"keys": [jwk]}).encode())] == ["RS256", "PS256"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"iss": "https://login.example/"}, "another issuer"),
        ({"iss": None}, "no iss"),
        ({"aud": "another-app"}, "another audience"),
        ({"aud": ["another-app"]}, "another audience"),
        ({"aud": None}, "no aud"),
        ({"exp": None}, "no exp"),
        ({"exp": 1_000_000_000}, "expired"),
        ({"exp": "2999"}, "no time"),
        ({"exp": True}, "no time"),
        ({"exp": 1e300}, "no time"),
        ({"nbf": 9_999_999_999}, "not valid yet"),
        ({"iat": 9_999_999_999}, "not valid yet"),
        ({"nbf": -1}, "no time"),
        ({"sub": None}, "no sub"),
        ({"sub": ""}, "no subject"),
        ({"sub": "ä"}, "no subject"),
        ({"sub": "\ud800"}, "no subject"),
        ({"sub": "x" * 256}, "no subject"),
        ({"sub": 5}, "malformed"),
    ],
)
def test_a_token_must_say_all_that_the_rules_ask_for(changes, reason):
    with pytest.raises(TokenError, match=reason):
        taken(KEY.sign(claims_of(**changes)))


def test_one_audience_among_several_is_enough():
    assert taken(KEY.sign(claims_of(aud=["another-app", AUDIENCE])))


def test_the_leeway_holds_for_the_end_and_the_beginning():
    token = KEY.sign(claims_of(exp=2_000_000_000, nbf=1_000_000_000, iat=1_000_000_000))
    first_ms, last_ms = 1_000_000_000_000 - 10_000, 2_000_000_000_000 + 9_999

    assert taken(token, now_ms=first_ms).ends_ms == taken(token, now_ms=last_ms).ends_ms == last_ms + 1
    for outside_ms in (first_ms - 1, last_ms + 1):
        with pytest.raises(TokenError):
            taken(token, now_ms=outside_ms)


def test_nothing_unsigned_is_taken():
    for algorithm in ("none", "None", "NONE", "", None, 5, ["ES256"], {}):
        with pytest.raises(TokenError):
            taken(written({"alg": algorithm, "kid": "e"}, claims_of()))


@pytest.mark.parametrize("name", KEYS)
def test_a_public_key_is_no_secret_for_an_hmac(name):
    for algorithm in ("HS256", "HS512", KEYS[name].algorithm):
        with pytest.raises(TokenError):
            taken(written({"alg": algorithm, "kid": name}, claims_of(), KEYS[name].pem))


def test_a_key_is_used_for_its_own_algorithm_only():
    """The token names another key than the one that signed, or another algorithm than that key's."""
    for signer in KEYS.values():
        for other in KEYS.values():
            if signer is not other:
                with pytest.raises(TokenError):
                    taken(signer.sign(claims_of(), kid=other.key_id))


def test_two_keys_of_one_name_are_not_guessed_between():
    twins = SigningKey("e"), SigningKey("e")

    with pytest.raises(TokenError):
        taken(twins[0].sign(claims_of()), shown(*twins))


def test_a_token_without_a_key_id_needs_an_issuer_with_one_key():
    lone, second = SigningKey("one"), SigningKey("two")
    token = lone.sign(claims_of(), kid="")

    assert taken(token, shown(lone))
    with pytest.raises(TokenError):
        taken(token, shown(lone, second))


def test_a_key_that_the_token_brings_along_is_not_looked_at():
    thief = SigningKey("e")

    with pytest.raises(TokenError, match="not signed by the issuer"):
        taken(thief.sign(claims_of(), jwk=thief.jwk, jku="https://thief.example/jwks"))


def test_a_header_that_asks_for_more_is_refused():
    for header in ({"crit": ["exp"]}, {"crit": ["b64"]}, {"crit": []}):
        with pytest.raises(TokenError):
            taken(KEY.sign(claims_of(), **header))


@pytest.mark.parametrize(
    "token", ["", "a", "a.b", "a.b.c", "....", "\0.\0.\0", "🔑.🔑.🔑", written([], {}), "e30.e30."]
)
def test_what_is_no_token_is_refused(token):
    with pytest.raises(TokenError):
        taken(token)


def test_an_altered_token_is_refused():
    head, body, signature = KEY.sign(claims_of()).split(".")
    other = KEY.sign(claims_of("bob")).split(".")[1]

    for altered in (f"{head}.{other}.{signature}", f"{head}.{body}.", f"{head}.{body}.{signature[:-4]}AAAA"):
        with pytest.raises(TokenError):
            taken(altered)


def test_a_token_is_read_up_to_its_limit():
    claims = claims_of()

    def filled(count: int) -> str:
        return KEYS["d"].sign({**claims, "filler": "x" * count})

    # Three letters of a filler are four of the token.
    longest = next(count for count in range(6000, 0, -1) if len(filled(count)) <= TOKEN_BYTES_MAX)
    assert len(filled(longest)) > TOKEN_BYTES_MAX - 4
    assert taken(filled(longest))

    with pytest.raises(TokenError, match="at most"):
        taken(filled(longest + 3))


@pytest.mark.parametrize(
    "changes",
    [{"use": "enc"}, {"alg": "HS256"}, {"alg": "ES384"}, {"kty": "oct"}, {"crv": "P-384"}, {"kid": 5}, {"x": "AA"}],
)
def test_keys_of_another_use_are_passed_over(changes):
    assert read_keys(shown(KEY, **changes)) == []


def test_a_short_rsa_key_is_passed_over():
    short = SigningKey("r", "RS256", generate_private_key(65537, 1024))

    assert read_keys(shown(short)) == []


@pytest.mark.parametrize("document", [b"", b"{}", b"[]", b'{"keys": 5}', b"<html>", b'{"keys": {}}', b"[" * 9999])
def test_what_is_no_jwks_is_the_issuers_fault(document):
    with pytest.raises(IssuerError):
        read_keys(document)


def test_strange_members_of_a_jwks_are_passed_over():
    document = json.dumps({"keys": [5, None, {}, {"kty": "EC"}, KEY.jwk]}).encode()

    assert [key.key_id for key in read_keys(document)] == ["e"]


def test_subjects_are_told_apart_by_issuer():
    assert subject_hash("https://a", "bc") != subject_hash("https://ab", "c")
