"""The repository holds nothing that belongs to one machine, to one person or to a list of things to do."""

import re

FILE_BYTES_MAX = 2_000_000

# Each is written so that it does not match its own text.
FORBIDDEN_TEXT = {
    "a path of one machine": rb"(?<![\w.])/(?:home|root|Users|work|farm|builds)/[\w.]",
    "an address of a package registry": rb"pypi\.(?:org|io)|python[h]osted|npmjs\.(?:org|com)",
    "an option that names a registry": rb"--(?:extra-)?index-url|--find[-]links|--trusted[-]host",
    "a private key": rb"-----BEGIN (?:[A-Z]+ )*PRIVATE [K]EY-----",
    "a note of work left over": rb"\b(?:TO[D]O|FIX[M]E|XX[X]|HA[C]K)\b",
}
# Lock files record the addresses their packages came from; constraints.txt does not.
FORBIDDEN_FILES = {"uv.lock", "poetry.lock", "package-lock.json"}


def line_of(content: bytes, match: re.Match[bytes]) -> int:
    """Return the line that a match starts on, counted from 1."""
    return content.count(b"\n", 0, match.start()) + 1


def test_no_file_holds_forbidden_text(root, repository_files):
    contents = {file: (root / file).read_bytes() for file in repository_files}
    found = [
        f"{file}:{line_of(content, match)}: {what}"
        for file, content in contents.items()
        for what, pattern in FORBIDDEN_TEXT.items()
        for match in re.finditer(pattern, content)
    ]

    assert found == []


def test_no_lock_file_is_kept(repository_files):
    assert [str(file) for file in repository_files if file.name in FORBIDDEN_FILES] == []


def test_no_file_is_too_large(root, repository_files):
    sizes = {str(file): (root / file).stat().st_size for file in repository_files}

    assert {file: size for file, size in sizes.items() if size > FILE_BYTES_MAX} == {}
