"""Versioned model folders: whole or not there, each number once, damage named."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import tinygrad_ish as tg
from tinygrad_ish.__main__ import main
from tinygrad_ish.deploy import registry
from tinygrad_ish.deploy.registry import MODEL, RegistryError, list_models, publish


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "double.msgpack"
    tg.export(lambda x: x * 2, np.ones((2, 3), np.float32), path, metadata={"accuracy": 0.5})
    return path


def test_versions_count_up_and_hold_the_program(program: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "double"
    entries = [publish(program, folder) for _ in range(11)]
    assert [e.version for e in entries] == list(range(1, 12))
    first = entries[0]
    assert first.path == folder / "1" / MODEL and first.path.read_bytes() == program.read_bytes()
    assert first.sha256 == hashlib.sha256(program.read_bytes()).hexdigest()
    assert (first.name, first.nbytes) == ("double", program.stat().st_size)
    assert first.metadata == {"accuracy": 0.5} and first.problem is None
    assert tg.load_program(first.path, "numpy")(np.ones((1, 3), np.float32)).tolist() == [[2.0] * 3]
    assert list_models(tmp_path / "models") == entries  # 10 after 9
    assert sorted(p.name for p in folder.iterdir()) == sorted(str(n) for n in range(1, 12))


def test_a_number_may_be_named_once(program: Path, tmp_path: Path) -> None:
    folder = tmp_path / "double"
    assert publish(program, folder, 7).version == 7
    assert publish(program, str(folder)).version == 8
    assert publish(program, folder, 2).version == 2
    before = (folder / "7" / MODEL).stat()
    with pytest.raises(RegistryError, match="7 exists, and a published version never changes"):
        publish(program, folder, 7)
    assert (folder / "7" / MODEL).stat() == before
    (folder / "20").touch()  # whatever it is, its number is taken
    with pytest.raises(RegistryError, match="20 exists"):
        publish(program, folder, 20)
    assert publish(program, folder).version == 21
    assert sorted(p.name for p in folder.iterdir()) == ["2", "20", "21", "7", "8"]


@pytest.mark.parametrize("version", [0, -1, True, 1.0, "1", 10**9])
def test_what_is_no_version(program: Path, tmp_path: Path, version: int) -> None:
    with pytest.raises(RegistryError, match="version: expected an int from 1 on, got"):
        publish(program, tmp_path / "double", version)


@pytest.mark.parametrize("name", ["3", ".hidden", "a b", "ü", "a" * 101, "-x"])
def test_what_is_no_name_of_a_model(program: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(RegistryError, match="expected a folder named after the model"):
        publish(program, tmp_path / name)
    assert not any(tmp_path.iterdir())


def test_the_folder_of_all_models_is_no_model(program: Path, tmp_path: Path) -> None:
    publish(program, tmp_path / "models" / "double")
    with pytest.raises(RegistryError, match="a folder of models, double among them"):
        publish(program, tmp_path / "models")


def test_only_intact_programs_are_published(program: Path, tmp_path: Path) -> None:
    damaged, weights = tmp_path / "damaged", tmp_path / "weights"
    content = bytearray(program.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    tg.save({"w": tg.ones(2)}, weights)
    for file in (damaged, weights):
        with pytest.raises(tg.WeightsError, match=str(file)):
            publish(file, tmp_path / "models" / "double")
    with pytest.raises(FileNotFoundError):
        publish(tmp_path / "nowhere", tmp_path / "models" / "double")
    assert not (tmp_path / "models").exists()


def test_a_copy_that_went_wrong_is_not_published(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(source: Path, target: Path) -> str:
        target.write_bytes(source.read_bytes()[:-1])
        return "0" * 64

    folder = tmp_path / "double"
    publish(program, folder)
    monkeypatch.setattr(registry, "_copy", torn)
    with pytest.raises(tg.WeightsError):
        publish(program, folder)
    assert [p.name for p in folder.iterdir()] == ["1"]


def test_readers_see_whole_versions_while_publishers_race(program: Path, tmp_path: Path) -> None:
    folder, rounds, publishers = tmp_path / "double", 5, 4
    command = (
        "import sys; from tinygrad_ish.deploy.registry import publish\n"
        f"for _ in range({rounds}): print(publish(sys.argv[1], sys.argv[2]).version)"
    )
    expected = program.read_bytes()
    running = [
        subprocess.Popen(
            [sys.executable, "-c", command, str(program), str(folder)],
            stdout=subprocess.PIPE, text=True,
        )
        for _ in range(publishers)
    ]  # fmt: skip
    seen = set()
    while any(p.poll() is None for p in running):
        with contextlib.suppress(FileNotFoundError):  # before the first
            for path in folder.iterdir():
                if path.name.isdecimal():
                    assert (path / MODEL).read_bytes() == expected
                    seen.add(int(path.name))
    numbers = [int(n) for p in running for n in p.communicate()[0].split()]
    assert sorted(numbers) == list(range(1, rounds * publishers + 1)) and seen <= set(numbers)
    assert all(p.returncode == 0 for p in running)
    assert all(e.problem is None for e in list_models(tmp_path))


def test_threads_that_want_one_number(program: Path, tmp_path: Path) -> None:
    outcomes: list[object] = []

    def work() -> None:
        try:
            outcomes.append(publish(program, tmp_path / "double", 3).version)
        except RegistryError:
            outcomes.append(None)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, outcomes)) == ["3", "None", "None", "None"]
    assert [p.name for p in (tmp_path / "double").iterdir()] == ["3"]


def test_a_killed_publisher_leaves_no_version(program: Path, tmp_path: Path) -> None:
    folder = tmp_path / "double"
    command = (
        "import os, sys; from tinygrad_ish.deploy import registry\n"
        "registry._sync = lambda folder: os._exit(9)\n"
        "registry.publish(sys.argv[1], sys.argv[2])"
    )
    done = subprocess.run([sys.executable, "-c", command, str(program), str(folder)], check=False)
    assert done.returncode == 9
    (left,) = list_models(tmp_path)
    assert left.version is None and left.problem is not None
    assert left.problem.startswith("unfinished: it is being published, or that was interrupted")
    assert publish(program, folder).version == 1


def test_damage_is_named_and_the_rest_is_listed(program: Path, tmp_path: Path) -> None:
    folder = tmp_path / "double"
    for _ in range(6):
        publish(program, folder)
    flipped = folder / "1" / MODEL
    flipped.write_bytes(flipped.read_bytes()[:-1] + b"\1")
    truncated = folder / "2" / MODEL
    truncated.write_bytes(truncated.read_bytes()[:-5])
    (folder / "3" / MODEL).unlink()
    (folder / "4" / f"{MODEL}.sha256").write_text("nonsense")
    shutil.copy(folder / "6" / MODEL, folder / "README")
    (folder / "latest").mkdir()
    (folder / "007").mkdir()
    (folder / ".git").mkdir()
    (tmp_path / "no name").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    entries = list_models(tmp_path)
    found = [(e.name, e.version, e.path.name, (e.problem or "fine").split(":")[0]) for e in entries]
    assert found == [
        ("double", 1, MODEL, "damaged"),
        ("double", 2, MODEL, str(truncated)),
        ("double", 3, MODEL, "[Errno 2] cannot read " + str(folder / "3" / MODEL)),
        ("double", 4, MODEL, str(folder / "4" / MODEL) + ".sha256"),
        ("double", 5, MODEL, "fine"),
        ("double", 6, MODEL, "fine"),
        ("double", None, "007", "expected a version, a number from 1 on"),
        ("double", None, "latest", "expected a version, a number from 1 on"),
        ("no name", None, "no name", "expected the name of a model"),
    ]
    quick = list_models(tmp_path, verify=False)  # sees what the header shows
    assert [e.version for e in quick if e.problem is None] == [1, 5, 6]
    with pytest.raises(FileNotFoundError):
        list_models(tmp_path / "nowhere")


def test_a_folder_that_cannot_be_read_is_named(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(program, tmp_path / "a")
    publish(program, tmp_path / "b")
    listing = Path.iterdir

    def denied(path: Path) -> object:
        if path.name == "a":
            raise PermissionError(13, "Permission denied")
        return listing(path)

    monkeypatch.setattr(Path, "iterdir", denied)
    first, second = list_models(tmp_path)
    assert (first.name, first.problem) == ("a", "cannot be read: Permission denied")
    assert (second.name, second.problem) == ("b", None)


def test_sha256sum_agrees(program: Path, tmp_path: Path) -> None:
    if shutil.which("sha256sum") is None:
        pytest.skip("sha256sum is not installed")
    path = publish(program, tmp_path / "double").path
    command = ["sha256sum", "--check", "--strict", f"{MODEL}.sha256"]
    subprocess.run(command, cwd=path.parent, check=True, stdout=subprocess.PIPE)


def test_commands(program: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = str(tmp_path / "models")
    assert main(["models", models]) == 2
    assert "models" in capsys.readouterr().err
    assert main(["publish", str(program), f"{models}/double"]) == 0
    assert main(["publish", str(program), f"{models}/double/", "--version", "5"]) == 0
    sha256 = hashlib.sha256(program.read_bytes()).hexdigest()
    printed = capsys.readouterr().out.splitlines()
    size = f"{program.stat().st_size:,} bytes"
    assert printed[1] == f"{os.path.join(models, 'double', '5', MODEL)}: {size}, sha256 {sha256}"
    assert main(["publish", str(program), f"{models}/double", "--version", "5"]) == 2
    assert "tinygrad-ish publish: " in capsys.readouterr().err
    assert main(["models", models]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[2:] == [f"double 5: {size}, sha256 {sha256}", "    accuracy: 0.5"]
    (Path(models) / "double" / "1" / MODEL).write_bytes(b"")
    assert main(["models", models]) == 1
    assert f"{MODEL}: BAD: " in capsys.readouterr().out
    os.mkdir(tmp_path / "none")
    assert main(["models", str(tmp_path / "none")]) == 0
    assert capsys.readouterr().out.endswith("none: no models\n")


def test_a_published_program_is_found_at_once(program: Path, tmp_path: Path) -> None:
    """What a server does: it looks again and again, and loads what is new."""
    publish(program, tmp_path / "double")
    started = {e.version for e in list_models(tmp_path, verify=False)}
    publish(program, tmp_path / "double")
    new = [e for e in list_models(tmp_path, verify=False) if e.version not in started]
    assert [tg.load_program(e.path, "numpy").metadata for e in new] == [{"accuracy": 0.5}]
