"""The wire does not change by accident: every frame's tag, and its fields in their order, with their types."""

import msgspec
import pytest

from twinlock.protocol import frames
from twinlock.protocol.frames import ClientFrame, ServerFrame

SCHEMA = {
    "Challenge": (1, "nonce:bytes server_pk:bytes incarnation:bytes server_time_ms:int"),
    "Hello": (2, "client_nonce:bytes origin:str account:bytes device:bytes signature:bytes ticket:bytes token:str"),
    "Welcome": (3, "signature:bytes server_time_ms:int session:int limits:dict[str,int] ticket:bytes"),
    "Attach": (4, "space:bytes incarnation:bytes cursor:int"),
    "Attached": (
        5,
        "space:bytes incarnation:bytes start:int head:int resume:int log_bytes:int own_counter:int own_id:bytes "
        "log_seq:int log_head:bytes",
    ),
    "Detach": (6, "space:bytes"),
    "Push": (7, "space:bytes envelopes:list[bytes]"),
    "Ack": (8, "space:bytes acked:list[tuple[int,int]]"),
    "Reject": (9, "space:bytes counter:int code:str detail:str retry_after_ms:int own_counter:int own_id:bytes"),
    "Entries": (10, "space:bytes entries:list[Entry] head:int"),
    "Lease": (11, "space:bytes epochs:list[int] nonce:bytes time_ms:int signature:bytes"),
    "Leases": (
        12,
        "space:bytes nonce:bytes grants:list[Grant] space_log_seq:int space_log_head:bytes account_log_seq:int "
        "account_log_head:bytes code:str detail:str retry_after_ms:int",
    ),
    "Signal": (13, "space:bytes sealed:bytes"),
    "Signals": (14, "space:bytes sealed:list[bytes]"),
    "Call": (15, "id:int method:str params:raw"),
    "Reply": (16, "id:int result:raw error:CallError|None"),
    "Notice": (17, "code:str space:bytes detail:str retry_after_ms:int"),
    "Goaway": (18, "retry_after_ms:int"),
    "Entry": (None, "seq:int received_ms:int envelope:bytes"),
    "Grant": (None, "epoch:int not_after_ms:int sealed:bytes"),
    "CallError": (None, "code:str detail:str retry_after_ms:int"),
}


def described(kind: msgspec.inspect.Type) -> str:
    """Write a type as the schema does."""
    match kind:
        case msgspec.inspect.ListType():
            return f"list[{described(kind.item_type)}]"
        case msgspec.inspect.DictType():
            return f"dict[{described(kind.key_type)},{described(kind.value_type)}]"
        case msgspec.inspect.TupleType():
            return f"tuple[{','.join(described(item) for item in kind.item_types)}]"
        case msgspec.inspect.UnionType():
            return "|".join(described(item) for item in kind.types)
        case msgspec.inspect.StructType():
            return kind.cls.__name__
    return type(kind).__name__.removesuffix("Type").lower()


def normal(text: str) -> str:
    return text.replace("none", "None")


@pytest.mark.parametrize("name", SCHEMA)
def test_a_frame_keeps_its_tag_and_its_fields(name):
    info = msgspec.inspect.type_info(getattr(frames, name))

    fields = " ".join(f"{field.encode_name}:{described(field.type)}" for field in info.fields)

    assert (info.tag, normal(fields)) == SCHEMA[name]
    assert info.array_like


def test_every_frame_is_pinned_here():
    every = {kind.__name__ for kind in (*ClientFrame.__args__, *ServerFrame.__args__)}

    assert every <= set(SCHEMA)


def test_a_frame_is_an_array_that_begins_with_its_tag():
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(frames.Detach(b"s" * 16))) == [6, b"s" * 16]


def test_a_field_added_at_the_end_does_not_break_an_older_reader():
    longer = msgspec.msgpack.encode([6, b"s" * 16, "from a newer version"])

    assert msgspec.msgpack.decode(longer, type=ClientFrame) == frames.Detach(b"s" * 16)
