"""Manifests from files: what is read, and what a person is told when it cannot be."""

import itertools
from pathlib import Path

import pytest

from mux_core.specs import PoolKey
from mux_core.units import GIB, ModelName
from mux_operator.local.manifests import manifest_files, read_file
from mux_operator.local.objects import Objects, inventory
from mux_operator.local.watching import FileWatch, signatures

LLM = """apiVersion: muxserve.io/v1alpha1
kind: LLMDeployment
metadata: {{name: {name}}}
spec:
  model:
    uri: {uri}
"""
POOL = """apiVersion: muxserve.io/v1alpha1
kind: GPUPool
metadata: {name: default}
spec:
  runtime: {device: CPU}
  gpu:
    static:
    - {node: here, count: 2, memory: 512Mi}
"""


def llm(name: str, uri: str = "file:///models/x") -> str:
    return LLM.format(name=name, uri=uri)


def objects() -> Objects:
    ids = itertools.count(1)
    return Objects(clock=lambda: 100.0, new_uid=lambda: f"uid-{next(ids)}")


def test_a_folder_gives_its_manifest_files_and_not_its_subfolders(tmp_path: Path) -> None:
    for name in ("b.yaml", "a.json", "c.yml", "notes.txt", ".hidden.yaml"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "d.yaml").write_text("{}")
    assert [f.name for f in manifest_files([tmp_path])] == ["a.json", "b.yaml", "c.yml"]


def test_a_file_may_hold_several_documents_and_a_list(tmp_path: Path) -> None:
    file = tmp_path / "all.yaml"
    file.write_text(f'{llm("one")}---\n---\n{{"kind": "List", "apiVersion": "v1", "items": '
                    '[{"apiVersion": "muxserve.io/v1alpha1", "kind": "GPUPool", '
                    '"metadata": {"name": "p"}, "spec": {}}]}\n')  # fmt: skip
    content = read_file(file)
    assert [m.subject for m in content.manifests] == ["LLMDeployment/one", "GPUPool/p"]
    assert content.problems == ()


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        pytest.param("a: [1\nb: 2\n", 2, "not YAML", id="not YAML"),
        pytest.param("- 1\n", 1, "must be an object", id="a list at the top"),
        pytest.param("apiVersion: muxserve.io/v1alpha1\nkind: Llm\nmetadata: {name: a}\n", 2,
                     "kind 'Llm' is not known; muxserve up reads LLMDeployment and GPUPool",
                     id="unknown kind"),
        pytest.param("apiVersion: muxserve.io/v1alpha1\nkind: GPUPool\nmetadata: {}\n", 3,
                     "metadata.name is missing", id="no name"),
        pytest.param("a: 1\na: 2\n", 2, "a is given twice", id="key given twice"),
        pytest.param("apiVersion: muxserve.io/v1\nkind: GPUPool\nmetadata: {name: p}\n", 1,
                     "muxserve.io/v1alpha1", id="unknown version"),
        pytest.param(llm("a", "ftp://host/x"), 6, "model.uri: use hf://", id="unknown scheme"),
        pytest.param(llm("a", "file://models/x"), 6, "is not absolute", id="relative folder"),
        pytest.param(llm("a") + "    colour: red\n", 7, 'unknown field "spec.model.colour"',
                     id="unknown field"),
        pytest.param(llm("a") + "  priority: 5000\n", 7, "less than or equal to 1000",
                     id="value above its bound"),
        pytest.param(llm("a" * 41), 3, "at most 40 characters", id="name too long"),
        pytest.param(POOL.replace("CPU", "CUDA"), 5, "set runtime.device: CPU", id="CUDA pool"),
        pytest.param(POOL + "    - {node: two, count: 1}\n", 7, "keep one entry",
                     id="two machines"),
        pytest.param(POOL.replace("512Mi", "1" + "0" * 30), 1, "at most 63 bits",
                     id="a number beyond the rules"),
        pytest.param("[" * 5000, 1, "nested too deep", id="nested too deep"),
        pytest.param(POOL.replace("512Mi", "lots"), 8, "'lots'", id="not a quantity"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_file_line_and_fix(
    tmp_path: Path, text: str, line: int, words: str
) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    outcome = objects().update(changed=[file])
    told = [str(problem) for problem in outcome.problems]
    assert any(t.startswith(f"{file}:{line}: ") and words in t for t in told), told
    assert not outcome.changed


def test_all_errors_of_all_files_are_listed_at_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(llm(name, "ftp://x") + "  priority: high\n")
    outcome = objects().update(changed=manifest_files([tmp_path]))
    assert {p.file.name for p in outcome.problems} == {"a.yaml", "b.yaml"}


def test_a_file_broken_since_keeps_its_models_and_they_say_so(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(llm(name))
    found, broken = objects(), tmp_path / "a.yaml"
    found.update(changed=manifest_files([tmp_path]))
    before = found.llms("default")
    broken.write_text(llm("a") + "  colour: red\n")
    assert found.update(changed=[broken]).changed
    a, b = found.llms("default")
    assert (a.spec, a.generation, b) == (before[0].spec, 1, before[1])
    assert a.spec_error.startswith(f"{broken}:7: ")
    assert not found.update(changed=[broken]).changed
    broken.write_text(llm("a"))
    assert found.update(changed=[broken]).changed
    assert found.llms("default") == before


def test_an_object_given_twice_names_both_places(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(llm("one"))
    (tmp_path / "b.yaml").write_text(llm("one"))
    outcome = objects().update(changed=manifest_files([tmp_path]))
    assert [p.file.name for p in outcome.problems] == ["b.yaml"]
    assert f"{tmp_path / 'a.yaml'}:1" in outcome.problems[0].message


def test_objects_of_two_namespaces_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(llm("one"))
    (tmp_path / "b.yaml").write_text(llm("two").replace("name: two", "name: two, namespace: x"))
    outcome = objects().update(changed=manifest_files([tmp_path]))
    assert "serves one namespace" in str(outcome.problems[0])


def test_kinds_of_other_groups_are_ignored_with_a_note(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("apiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n")
    outcome = objects().update(changed=manifest_files([tmp_path]))
    assert outcome.problems == ()
    assert "Namespace" in outcome.notes[0]


def test_an_alias_to_itself_ends(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("a: &x\n  b: *x\n")
    assert read_file(file).problems


def test_uid_stays_and_generation_grows_only_with_the_spec(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    known = objects()
    file.write_text(llm("one"))
    assert known.update(changed=[file]).changed
    first = known.llms("default")[0]
    file.write_text("# a comment\n" + llm("one"))
    known.update(changed=[file])
    assert known.llms("default")[0].generation == first.generation
    file.write_text(llm("one") + "  priority: 3\n")
    known.update(changed=[file])
    changed = known.llms("default")[0]
    assert (changed.uid, changed.generation) == (first.uid, first.generation + 1)
    assert changed.spec is not None
    assert changed.spec.priority == 3


def test_a_broken_file_keeps_its_last_good_objects(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(llm("one"))
    known = objects()
    known.update(changed=[file])
    file.write_text("spec: [")
    assert known.update(changed=[file]).problems
    assert [m.name for m in known.llms("default")] == ["one"]


def test_an_immutable_field_may_not_change(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(llm("one"))
    known = objects()
    known.update(changed=[file])
    file.write_text(llm("one") + "  poolRef: {name: other}\n")
    assert "poolRef is immutable" in str(known.update(changed=[file]).problems[0])


def test_a_moved_file_is_taken_once_the_old_one_is_gone(tmp_path: Path) -> None:
    old, new = tmp_path / "a.yaml", tmp_path / "b.yaml"
    old.write_text(llm("one"))
    known = objects()
    known.update(changed=[old])
    new.write_text(llm("one") + "  priority: 9\n")
    assert "given twice" in str(known.update(changed=[new]).problems[0])
    old.unlink()
    outcome = known.update(changed=[], gone=[old])
    assert outcome.problems == ()
    spec = known.llms("default")[0].spec
    assert spec is not None
    assert spec.priority == 9


def test_without_a_pool_manifest_default_is_one_cpu_slot(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(llm("one"))
    known = objects()
    known.update(changed=[file])
    pool = known.pool(PoolKey(namespace="default", name="default"))
    assert pool is not None
    assert [(n.gpus, n.memory) for n in inventory(pool.spec)] == [(1, 2 * GIB)]


def test_the_pools_static_entry_is_the_inventory(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(POOL)
    known = objects()
    known.update(changed=[file])
    pool = known.pool(PoolKey(namespace="default", name="default"))
    assert pool is not None
    assert [(n.name, n.gpus, n.memory) for n in inventory(pool.spec)] == [("here", 2, GIB // 2)]
    assert known.pool(PoolKey(namespace="default", name="other")) is None


def test_a_source_of_the_cluster_says_the_fix(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(llm("one", "pvc://models/x"))
    known = objects()
    assert known.update(changed=[file]).problems == ()
    (model,) = known.llms("default")
    assert model.name == ModelName("one")
    assert not model.path
    assert "file:///" in model.source_error


def test_a_file_counts_as_changed_when_it_stopped_changing(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    watch = FileWatch(taken={})
    file.write_text("a")
    assert not watch.look(signatures([tmp_path]))
    file.write_text("ab")
    assert not watch.look(signatures([tmp_path]))
    assert watch.look(signatures([tmp_path])).changed == (file,)
    assert not watch.look(signatures([tmp_path]))


def test_a_file_is_gone_when_it_is_missed_twice(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("a")
    watch = FileWatch(taken=signatures([tmp_path]))
    watch.look(signatures([tmp_path]))
    file.unlink()
    assert not watch.look(signatures([tmp_path]))
    assert watch.look(signatures([tmp_path])).gone == (file,)
