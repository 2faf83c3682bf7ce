"""Write the test vectors of spec/vectors, which every implementation reads: `python -m tools.make_vectors`.

A vector that is released stays as it is: a case that stands in a file is never altered or dropped, only new ones are
added. If the code no longer makes a released case, the script says which and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from tools import (
    vectors_blobs,
    vectors_documents,
    vectors_envelopes,
    vectors_frames,
    vectors_keys,
    vectors_keyservice,
    vectors_logs,
    vectors_members,
    vectors_merging,
    vectors_nodes,
    vectors_people,
    vectors_requests,
    vectors_sessions,
)

Case = dict[str, object]
Vector = dict[str, object]

FOLDER = Path(__file__).parents[1] / "spec" / "vectors"
MAKERS: dict[str, Callable[[], Vector]] = {
    **vectors_keys.MAKERS,
    **vectors_keyservice.MAKERS,
    **vectors_logs.MAKERS,
    **vectors_members.MAKERS,
    **vectors_people.MAKERS,
    **vectors_requests.MAKERS,
    **vectors_nodes.MAKERS,
    **vectors_envelopes.MAKERS,
    **vectors_blobs.MAKERS,
    **vectors_documents.MAKERS,
    **vectors_merging.MAKERS,
    **vectors_frames.MAKERS,
    **vectors_sessions.MAKERS,
}


def make_all() -> dict[str, Vector]:
    """Return every vector by the name of its file."""
    return {name: maker() for name, maker in MAKERS.items()}


def altered_cases(released: Vector, made: Vector) -> list[str]:
    """Return the names of released cases that the new vector does not hold as they were."""
    altered = []
    for part in ("accept", "reject"):
        now = {case["name"]: case for case in _cases(made, part)}
        altered += [str(case["name"]) for case in _cases(released, part) if now.get(case["name"]) != case]
    return altered


def text_of(vector: Vector) -> str:
    """Return a vector as it stands in its file."""
    return json.dumps(vector, indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    """Write what is new; refuse to alter what is released."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is not up to date")
    check_only = parser.parse_args().check
    made = make_all()
    problems, outdated = [], []
    for name, vector in made.items():
        path = FOLDER / f"{name}.json"
        released = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        problems += [f"{path.name}: {case}" for case in altered_cases(released, vector)]
        if released != vector:
            outdated.append(path.name)
    if problems:
        print("Refused: these released cases would change:", *problems, sep="\n  ", file=sys.stderr)
        return 1
    if check_only:
        print("Not up to date:" if outdated else "All vectors are up to date.", *outdated)
        return 1 if outdated else 0
    for name, vector in made.items():
        path = FOLDER / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text_of(vector), encoding="utf-8")
    print(f"Wrote {len(made)} files, {len(outdated)} of them new or longer.")
    return 0


def _cases(vector: Vector, part: str) -> list[Case]:
    cases = vector.get(part, [])
    assert isinstance(cases, list)
    return cases


if __name__ == "__main__":
    raise SystemExit(main())
