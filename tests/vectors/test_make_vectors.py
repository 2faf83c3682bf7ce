"""The vectors are what the script makes, and the script never alters a released one."""

import json

from tools import make_vectors


def test_the_files_hold_what_the_script_makes():
    made = make_vectors.make_all()

    for name, vector in made.items():
        released = json.loads((make_vectors.FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        assert released == vector, name


def test_an_altered_or_dropped_case_is_named():
    released = {"accept": [{"name": "a", "output": "00"}, {"name": "b", "output": "01"}], "reject": [{"name": "c"}]}
    made = {"accept": [{"name": "a", "output": "ff"}, {"name": "b", "output": "01"}], "reject": []}

    assert make_vectors.altered_cases(released, made) == ["a", "c"]


def test_a_new_case_may_be_added():
    assert make_vectors.altered_cases({"accept": [{"name": "a"}]}, {"accept": [{"name": "a"}, {"name": "b"}]}) == []


def test_a_refused_run_writes_nothing(tmp_path, monkeypatch, capsys):
    (tmp_path / "labels.json").write_text('{"accept": [{"name": "gone"}]}', encoding="utf-8")
    monkeypatch.setattr(make_vectors, "FOLDER", tmp_path)
    monkeypatch.setattr("sys.argv", ["make_vectors"])

    assert make_vectors.main() == 1
    assert "labels.json: gone" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["labels.json"]


def test_the_read_me_names_every_file():
    described = (make_vectors.FOLDER / "README.md").read_text(encoding="utf-8")

    assert [name for name in make_vectors.MAKERS if f"`{name.removeprefix('sessions/')}`" not in described] == []
