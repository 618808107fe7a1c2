"""The local validator and the parsers; the integration suite asks the API server the same."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mux_core.errors import SpecError
from mux_core.llm import Demand, Slo
from mux_core.specs import Mode, Scheme
from mux_core.unitspec import Device
from mux_operator.schema import parse_llm, parse_pool, parse_source, validate, with_defaults
from operator_builders import CHANGES, GOOD, WRONG, Manifest, llm_manifest, pool_manifest

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(("manifest", "said"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_a_wrong_manifest_is_refused_with_the_fix(manifest: Manifest, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        validate(manifest)
    assert said in str(caught.value)
    assert manifest["metadata"]["name"] in str(caught.value)


@pytest.mark.parametrize(("before", "after", "said"), [c[1:] for c in CHANGES],
                         ids=[c[0] for c in CHANGES])  # fmt: skip
def test_a_forbidden_change_is_refused(before: Manifest, after: Manifest, said: str) -> None:
    validate(before)
    validate(after)
    with pytest.raises(SpecError, match=said):
        validate(after, old=before)


@pytest.mark.parametrize("manifest", GOOD, ids=lambda m: m["metadata"]["name"])
def test_a_good_manifest_passes_and_parses(manifest: Manifest) -> None:
    validate(manifest)
    parse = parse_llm if manifest["kind"] == "LLMDeployment" else parse_pool
    # What the API server stores has the defaults filled in; both must mean the same.
    assert parse(with_defaults(manifest)) == parse(manifest)


def test_a_local_folder_is_taken_here() -> None:
    validate(llm_manifest(model={"uri": "file:///models/a"}))


FOREIGN = (
    None,
    [],
    {"kind": "Pod", "apiVersion": "v1"},
    {"apiVersion": "muxserve.io/v1alpha1", "kind": "Nothing"},
    {"apiVersion": "muxserve.io/v1alpha1", "kind": "GPUPool"},
)


@pytest.mark.parametrize("manifest", FOREIGN)
def test_what_is_no_manifest_of_ours_is_refused(manifest: object) -> None:
    with pytest.raises(SpecError):
        validate(manifest)


def test_every_field_of_a_model_is_parsed() -> None:
    spec = parse_llm(GOOD[2])
    assert spec.source.scheme is Scheme.HF
    assert (spec.source.location, spec.source.revision) == ("org/model", "abc")
    assert spec.served_name == "org/Model"
    assert spec.allowed_tensor == (1, 2)
    assert (spec.min_replicas, spec.max_replicas) == (1, 2)
    assert spec.declared == Demand(rate=2.5, prompt_tokens=100, output_tokens=20)
    assert spec.slo == Slo(ttft_s=0.5, tpot_s=0.05, objective=0.995)
    assert spec.sharing.kv_request == 1 << 30
    assert spec.sharing.tenant_group == "blue"
    assert spec.drain_timeout_s == 90.0
    assert not spec.movable


def test_every_field_of_a_pool_is_parsed() -> None:
    spec = parse_pool(GOOD[3])
    assert (spec.mode, spec.device) == (Mode.EXECUTE, Device.CPU)
    assert (spec.static[0].memory, spec.gpu_limit) == (80 << 30, 4)
    assert (spec.group_sizes, spec.allow_sharing) == ((1, 2), False)
    assert spec.pod.cpu == "2"
    assert spec.gateway.max_queued_per_model == 0


def test_the_claim_and_the_folder_of_a_source() -> None:
    source = parse_source("pvc://models/a/b/")
    assert (source.claim, source.folder) == ("models", "a/b")
    assert parse_source("file:///x/y").folder == "/x/y"
    assert parse_source("pvc://models/a@b").folder == "a@b"


def test_the_written_files_are_what_the_schema_says() -> None:
    command = [sys.executable, "-m", "mux_operator.schema", "--check", "--root", str(ROOT)]
    subprocess.run(command, check=True)


def test_an_unknown_default_pool_field_has_its_path_named() -> None:
    with pytest.raises(SpecError, match=r'unknown field "spec.gpu.static\[0\].memroy"'):
        validate(pool_manifest(gpu={"static": [{"node": "a", "count": 1, "memroy": "1Gi"}]}))


@pytest.mark.parametrize("file", sorted((ROOT / "deploy" / "examples").glob("*.yaml")),
                         ids=lambda file: file.stem)  # fmt: skip
def test_the_examples_are_valid(file: Path) -> None:
    documents = list(yaml.safe_load_all(file.read_text()))
    assert documents
    for document in documents:
        validate(document)
