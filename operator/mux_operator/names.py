"""Names, labels and paths that the Kubernetes objects of ours share; pure."""

from typing import Final

PART_OF: Final = "app.kubernetes.io/part-of"
MANAGED_BY: Final = "app.kubernetes.io/managed-by"
COMPONENT: Final = "app.kubernetes.io/component"
US: Final = "muxserve"
MANAGER: Final = "muxserve-operator"

POOL: Final = "muxserve.io/pool"
UNIT: Final = "muxserve.io/unit"
INCARNATION: Final = "muxserve.io/incarnation"
MODEL: Final = "muxserve.io/model"
SOURCE: Final = "muxserve.io/source"
REVISION: Final = "muxserve.io/revision"
SERVES: Final = "llm.muxserve.io/"
"""Label prefix on unit pods: `llm.muxserve.io/<model>: serving|draining`."""

PLAN_DONE: Final = "Completed"
PLAN_WAITS: Final = "Pending"
PLAN_SUPERSEDED: Final = "Superseded"
"""Phases of a PlacementPlan; programs read its conditions."""

ROUTES: Final = "muxserve-routes"
"""The ConfigMap that holds the namespace's route table; gateways mount it."""
ROUTES_KEY: Final = "routes.json"
UNIT_KEY: Final = "spec.json"
GROUP_KEY: Final = "group.json"

UNIT_FOLDER: Final = "/etc/muxserve/unit"
RUN_FOLDER: Final = "/run/muxserve"
SCRATCH_FOLDER: Final = "/scratch"
MODELS_FOLDER: Final = "/models"
FIRST_MODEL_PORT: Final = 10000


def model_folder(claim: str, folder: str) -> str:
    """Where a unit sees a checkpoint of a claim."""
    return f"{MODELS_FOLDER}/{claim}/{folder}".rstrip("/")


def service_name(model: str) -> str:
    return f"llm-{model}"


def fetch_name(model: str) -> str:
    return f"{model}-fetch"


def pod_name(unit: str, incarnation: int) -> str:
    return f"{unit}-{incarnation}"
