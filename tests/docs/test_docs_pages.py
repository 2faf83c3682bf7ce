"""The pages are what the spec says, and their links lead somewhere."""

import re

from tests.docs.errors_page import PAGE, ROOT, page

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def heading_anchor(heading: str) -> str:
    """Return the anchor that renderers give a heading."""
    kept = re.sub(r"[^\w\s-]", "", heading.replace("`", "").strip().lower())
    return re.sub(r"\s", "-", kept)


def anchors_of(text: str) -> set[str]:
    """Return the anchors of a page's headings."""
    return {heading_anchor(heading) for heading in re.findall(r"^#+\s+(.+)$", text, re.MULTILINE)}


def test_the_errors_page_is_made_from_the_registry():
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m tests.docs.errors_page"


def test_every_link_between_pages_leads_to_a_page_and_a_heading():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "spec").rglob("*.md")]
    broken = []
    for path in pages:
        for target in LINK.findall(CODE.sub("", path.read_text(encoding="utf-8"))):
            if target.startswith(("http://", "https://", "mailto:")):
                continue
            name, _, anchor = target.partition("#")
            file = (path.parent / name) if name else path
            if not file.exists() or (anchor and anchor not in anchors_of(file.read_text(encoding="utf-8"))):
                broken.append(f"{path.relative_to(ROOT)}: {target}")

    assert broken == []
