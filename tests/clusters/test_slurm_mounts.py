# SPDX-License-Identifier: Apache-2.0
"""Containers on Slurm: the image and the mounts exist, and the container sees every path of the job."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.archives import write_base
from tests.workplace import Launch, Workplace

pytestmark = pytest.mark.unit
Refused = Callable[..., str]


@pytest.fixture
def arguments(workplace: Workplace) -> tuple[str, ...]:
    return (*workplace.arguments, "debug=True", "cluster_type=bcm", f"data_dir={workplace.root}/data")


@pytest.fixture
def refused(launch: Launch, workplace: Workplace, arguments: tuple[str, ...]) -> Refused:
    """Return the message of a launch, whose suggested mounts are then accepted."""

    def run(*given: str) -> str:
        result = launch(*arguments, "container=image", *given)
        assert result.status == 2
        (fix,) = {word for word in shlex.split(result.err) if word.startswith("container_mounts=")}
        others = [argument for argument in given if not argument.startswith("container_mounts=")]
        assert launch(*arguments, "container=image", *others, fix).status == 0
        return result.err

    return run


@pytest.fixture
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outside").resolve()


def test_each_path_that_a_job_writes_needs_a_mount(refused: Refused, outside: Path) -> None:
    adapter = f"adapter_learning.model.nemo_path={outside}/new/a.nemo"
    message = refused(adapter, f"adapter_learning.model.data.cache_dir={outside}/cache")
    assert message.startswith("2 mistakes;")
    assert f"adapter_learning writes {outside}/new/a.nemo, which is not mounted" in message
    assert f"adapter_learning writes {outside}/cache, which is not mounted" in message
    assert f"container_mounts=[{outside}]" in message


def test_the_suggestion_keeps_the_mounts_that_are_there(refused: Refused, outside: Path, tmp_path: Path) -> None:
    model = f"adapter_learning.model.language_model_path={write_base(outside / 'base.nemo')}"
    assert f"container_mounts=[{tmp_path},{outside}]" in refused(model, f"container_mounts=[{tmp_path}]")


def test_a_link_needs_a_mount_of_what_it_leads_to(refused: Refused, workplace: Workplace, outside: Path) -> None:
    (workplace.root / "data").mkdir(exist_ok=True)
    link = workplace.root / "data/base.nemo"
    link.symlink_to(write_base(outside / "base.nemo"))
    message = refused(f"adapter_learning.model.language_model_path={link}")
    assert f"reads {link} through a link to {outside}/base.nemo, which is not mounted" in message


def test_a_link_within_a_mounted_folder_is_no_problem(
    launch: Launch, workplace: Workplace, arguments: tuple[str, ...], outside: Path
) -> None:
    (outside / "deep").mkdir()
    write_base(outside / "deep/base.nemo")
    (outside / "base.nemo").symlink_to("deep/base.nemo")
    mounted = workplace.root / "models"
    mounted.symlink_to(outside)  # the mount itself is a link, as on many file systems
    model = f"adapter_learning.model.language_model_path={mounted}/base.nemo"
    assert launch(*arguments, "container=image", model, f"container_mounts=[{mounted}]").status == 0


def test_links_in_a_model_folder_lead_to_the_cache_of_the_hub(
    launch: Launch, workplace: Workplace, outside: Path
) -> None:
    (outside / "blobs").mkdir()
    (outside / "blobs/abc").write_text("{}")
    folder = outside / "snapshots/1"
    folder.mkdir(parents=True)
    (folder / "config.json").symlink_to("../../blobs/abc")
    given = ["stages=[conversion_hf2nemo]", "conversion_hf2nemo=hf", "preflight=off", "cluster_type=bcm", "debug=True"]
    given += [*workplace.arguments[:2], "container=image", "conversion_hf2nemo.run.model_train_name=m"]
    given.append(f"conversion_hf2nemo.model.hf_model_path={folder}")
    message = launch(*given, f"container_mounts=[{folder}]").err
    assert f"reads {folder} through a link to {outside}/blobs/abc, which is not mounted" in message
    assert launch(*given, f"container_mounts=[{folder},{outside}/blobs]").status == 0


@pytest.mark.parametrize(
    ("image", "content", "words"),
    [
        ("image.sqsh", None, "image.sqsh: no such file"),
        ("image.sqsh", b"PK", "is not a squashfs image"),
        ("folder", None, "folder: is a folder, not a file"),
        ("image.sif", b"SIF", "container_runtime=apptainer"),
    ],
)
def test_an_image_file_of_pyxis_is_one(
    image: str, content: bytes | None, words: str, launch: Launch, workplace: Workplace, arguments: tuple[str, ...]
) -> None:
    path = workplace.root / image
    if content is not None:
        path.write_bytes(content)
    elif image == "folder":
        path.mkdir()
    mounts = f"container_mounts=[{workplace.root}]"
    result = launch(*arguments, f"container={path}", mounts)
    assert result.status == 2
    assert words in result.err
    assert launch(*arguments, f"container={path}", mounts, "preflight=warn").status == 0
    path = workplace.root / "good.sqsh"
    path.write_bytes(b"hsqs and more")
    assert launch(*arguments, f"container={path}", mounts).status == 0


def test_a_file_without_its_folder_is_a_name_of_a_registry(
    launch: Launch, workplace: Workplace, arguments: tuple[str, ...]
) -> None:
    message = launch(*arguments, "container=image.sqsh", f"container_mounts=[{workplace.root}]").err
    assert "pyxis takes image.sqsh for an image of a registry" in message
    assert f"name it with its folder: container={Path.cwd()}/image.sqsh" in message


def test_mounts_exist_unless_the_scripts_are_for_another_machine(
    launch: Launch, workplace: Workplace, arguments: tuple[str, ...], outside: Path
) -> None:
    given = ("container=image", f"container_mounts=[{workplace.root},{outside}/none:/inside]")
    assert launch(*arguments, *given).status == 0
    result = launch(*arguments, *given, "debug=False")
    assert result.status == 2
    assert f"{outside}/none does not exist, so no container would start" in result.err
