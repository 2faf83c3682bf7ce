"""The guide about files runs, from its first block to its last, against a real server."""

from tests.docs.test_docs_guides import close_all, play, server

__all__ = ["server"]


async def test_files_go_as_their_guide_says(server, tmp_path, capsys):
    names = await play("docs/guides/files.md", server.url)

    printed = capsys.readouterr().out
    assert "beach.jpg image/jpeg 24 uploaded\nTrue\nb'the bytes'\n" in printed
    assert (tmp_path / "beach.jpg").read_bytes() == b"all the bytes of a photo"
    kept = {info.name for info in await names["trip"].files.list()}
    assert kept == {"beach.jpg", "cover.png"}
    await close_all(names)
