"""Errors of what can happen to a connection, a sign-in and a call."""

from __future__ import annotations

from twinlock.errors.root import TwinlockError


class MalformedFrameError(TwinlockError):
    """A message was not a valid frame."""

    code, retry = "malformed_frame", "no"
    fix = "Use a client that follows spec/protocol.md; this connection is closed."


class UnexpectedFrameError(TwinlockError):
    """A frame came in a state that does not allow it."""

    code, retry = "unexpected_frame", "no"
    fix = "Follow the session states of spec/protocol.md, section 3; this connection is closed."


class LimitExceededError(TwinlockError):
    """A message is over one of the limits told at welcome."""

    code, retry = "limit_exceeded", "no"
    fix = "Split the work into smaller messages; see spec/protocol.md, section 8."


class HelloTimeoutError(TwinlockError):
    """No hello came in time after the challenge."""

    code, retry = "hello_timeout", "later"
    fix = "Connect again."


class ChallengeError(TwinlockError):
    """The answer does not belong to a challenge that is open (replayed, or older than 30 s)."""

    code, retry = "challenge_refused", "later"
    fix = "Connect again and answer the new challenge."


class ProofError(TwinlockError):
    """The signature of the hello does not verify."""

    code, retry = "proof_refused", "no"
    fix = "Check that the device's keys belong to this account and that the address is the server's own."


class WrongServerError(TwinlockError):
    """The server's key or signature is not that of the server this profile belongs to."""

    code, retry = "wrong_server", "no"
    fix = "Check the address; if the server really changed its key, sign up or recover against it anew."


class CredentialsError(TwinlockError):
    """The name, the password or the recovery kit is wrong."""

    code, retry = "wrong_credentials", "no"
    fix = "Check the name and the secret; tries are limited."


class RecoveryKitError(TwinlockError):
    """The recovery kit's letters do not check out."""

    code, retry = "recovery_kit_malformed", "no"
    fix = "Type the 28 characters again; a single mistyped letter is noticed."


class NameTakenError(TwinlockError):
    """An account of that name exists."""

    code, retry = "name_taken", "no"
    fix = "Choose another name, or recover the account with its kit."


class NameInvalidError(TwinlockError):
    """A name has characters or a length that are not allowed."""

    code, retry = "name_invalid", "no"
    fix = "Account names use a-z 0-9 . _ @ + - and at most 128 characters."


class PasswordError(TwinlockError):
    """The password is too short."""

    code, retry = "password_refused", "no"
    fix = "Use at least 8 characters (14 where it also opens data)."


class WeakParametersError(TwinlockError):
    """The server offered password parameters below this client's minimum."""

    code, retry = "weak_parameters", "no"
    fix = "Do not sign in to this server; its operator must raise them."


class NotSignedInError(TwinlockError):
    """This call needs a signed-in device."""

    code, retry = "not_signed_in", "no"
    fix = "Sign up, sign in or recover first."


class RateLimitedError(TwinlockError):
    """Too many requests in a short time."""

    code, retry = "rate_limited", "later"
    fix = "Wait for `retry_after_ms` and try again."


class OverloadedError(TwinlockError):
    """The server takes on no more work just now."""

    code, retry = "overloaded", "later"
    fix = "Wait for `retry_after_ms`; clients of this project do so by themselves."


class DrainingError(TwinlockError):
    """The server is going down in good order."""

    code, retry = "draining", "later"
    fix = "Connect again after `retry_after_ms`."


class UnknownMethodError(TwinlockError):
    """There is no call of that name."""

    code, retry = "unknown_method", "no"
    fix = "Use a method listed in spec/protocol.md, section 6."


class InvalidCallError(TwinlockError):
    """A call's parameters are not of the method's form."""

    code, retry = "invalid_call", "no"
    fix = "Give what docs/reference/sdk.md lists; on the wire, what spec/protocol.md does in section 6."


class OfflineError(TwinlockError):
    """This call needs the server, and there is no connection."""

    code, retry = "offline", "later"
    fix = "Check the address and that the server runs; an open database connects by itself (`db.status`)."


class ClosedError(TwinlockError):
    """The database was closed."""

    code, retry = "closed", "no"
    fix = "Open it again with `twinlock.connect`."


class NotFoundError(TwinlockError):
    """What was asked for is not there."""

    code, retry = "not_found", "no"
    fix = "Check the name or id; of documents, `set` creates one and `update` needs one."


class InternalError(TwinlockError):
    """The server met an error of its own."""

    code, retry = "internal", "later"
    fix = "Try again; report it if it stays."


class TokenError(TwinlockError):
    """The sign-in token is not valid here."""

    code, retry = "token_refused", "no"
    fix = "Sign in at the application's identity provider again; check issuer, audience and clock."


class IssuerError(TwinlockError):
    """The keys of the identity provider cannot be fetched just now."""

    code, retry = "issuer_unavailable", "later"
    fix = "Wait for `retry_after_ms`; the operator checks `oidc_jwks_url`."
