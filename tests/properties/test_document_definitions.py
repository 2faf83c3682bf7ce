"""Merging does what the definitions of spec/documents.md say, which stand here once more, written out plainly."""

from hypothesis import given, settings

from tests.properties.test_document_merge_laws import KINDS, merged
from tests.vectors import plain_merge, plain_view
from twinlock.document.operations import encode_change
from twinlock.document.values import canonical


@given(edits=KINDS["documents"])
@settings(deadline=None, max_examples=150)
def test_a_state_and_its_value_are_as_defined(edits):
    facts = [
        (edit.stamp.to_bytes(8, "big") + device, operation, raw)
        for edit, device in edits
        for operation, raw in plain_merge.operations_of(encode_change([edit]))
    ]

    document = merged(edits)

    assert document.encode() == plain_merge.state_bytes(facts)
    assert canonical(document.value()) == canonical(plain_view.value_of(document.encode()))
