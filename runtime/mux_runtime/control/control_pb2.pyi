from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import Any as _Any, ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ApplyRequest(_message.Message):
    __slots__ = ("spec_json",)
    SPEC_JSON_FIELD_NUMBER: _ClassVar[int]
    spec_json: str
    def __init__(self, spec_json: _Optional[str] = ...) -> None: ...

class ApplyRoutesRequest(_message.Message):
    __slots__ = ("routes_json",)
    ROUTES_JSON_FIELD_NUMBER: _ClassVar[int]
    routes_json: str
    def __init__(self, routes_json: _Optional[str] = ...) -> None: ...

class ApplyReply(_message.Message):
    __slots__ = ("accepted", "generation", "reason", "message")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    accepted: bool
    generation: int
    reason: str
    message: str
    def __init__(self, accepted: _Optional[bool] = ..., generation: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("interval_s",)
    INTERVAL_S_FIELD_NUMBER: _ClassVar[int]
    interval_s: float
    def __init__(self, interval_s: _Optional[float] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("model", "timeout_s")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    model: str
    timeout_s: float
    def __init__(self, model: _Optional[str] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class DrainReply(_message.Message):
    __slots__ = ("drained", "cut", "message")
    DRAINED_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    drained: bool
    cut: int
    message: str
    def __init__(self, drained: _Optional[bool] = ..., cut: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class HostStatus(_message.Message):
    __slots__ = ("phase", "pid", "state", "restarts", "planned_percent", "seen_sms")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    PLANNED_PERCENT_FIELD_NUMBER: _ClassVar[int]
    SEEN_SMS_FIELD_NUMBER: _ClassVar[int]
    phase: str
    pid: int
    state: str
    restarts: int
    planned_percent: int
    seen_sms: int
    def __init__(self, phase: _Optional[str] = ..., pid: _Optional[int] = ..., state: _Optional[str] = ..., restarts: _Optional[int] = ..., planned_percent: _Optional[int] = ..., seen_sms: _Optional[int] = ...) -> None: ...

class Counters(_message.Message):
    __slots__ = ("arrivals", "finished", "rejected", "cancelled", "prompt_tokens", "generated_tokens", "ttft_seconds_sum", "ttft_count", "tpot_seconds_sum", "tpot_count", "ttft_counts", "tpot_counts", "slo_judged", "slo_met")
    ARRIVALS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TTFT_SECONDS_SUM_FIELD_NUMBER: _ClassVar[int]
    TTFT_COUNT_FIELD_NUMBER: _ClassVar[int]
    TPOT_SECONDS_SUM_FIELD_NUMBER: _ClassVar[int]
    TPOT_COUNT_FIELD_NUMBER: _ClassVar[int]
    TTFT_COUNTS_FIELD_NUMBER: _ClassVar[int]
    TPOT_COUNTS_FIELD_NUMBER: _ClassVar[int]
    SLO_JUDGED_FIELD_NUMBER: _ClassVar[int]
    SLO_MET_FIELD_NUMBER: _ClassVar[int]
    arrivals: int
    finished: int
    rejected: int
    cancelled: int
    prompt_tokens: int
    generated_tokens: int
    ttft_seconds_sum: float
    ttft_count: int
    tpot_seconds_sum: float
    tpot_count: int
    ttft_counts: _containers.RepeatedScalarFieldContainer[int]
    tpot_counts: _containers.RepeatedScalarFieldContainer[int]
    slo_judged: int
    slo_met: int
    def __init__(self, arrivals: _Optional[int] = ..., finished: _Optional[int] = ..., rejected: _Optional[int] = ..., cancelled: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., generated_tokens: _Optional[int] = ..., ttft_seconds_sum: _Optional[float] = ..., ttft_count: _Optional[int] = ..., tpot_seconds_sum: _Optional[float] = ..., tpot_count: _Optional[int] = ..., ttft_counts: _Optional[_Iterable[int]] = ..., tpot_counts: _Optional[_Iterable[int]] = ..., slo_judged: _Optional[int] = ..., slo_met: _Optional[int] = ...) -> None: ...

class MemberStatus(_message.Message):
    __slots__ = ("model", "served_name", "state", "reason", "message", "permanent", "counters", "waiting", "running", "kv_used_bytes", "kv_quota_bytes", "kv_guaranteed_bytes", "kv_limit_bytes", "weight_bytes", "hosts")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SERVED_NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    PERMANENT_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    KV_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_QUOTA_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_GUARANTEED_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOSTS_FIELD_NUMBER: _ClassVar[int]
    model: str
    served_name: str
    state: str
    reason: str
    message: str
    permanent: bool
    counters: Counters
    waiting: int
    running: int
    kv_used_bytes: int
    kv_quota_bytes: int
    kv_guaranteed_bytes: int
    kv_limit_bytes: int
    weight_bytes: int
    hosts: _containers.RepeatedCompositeFieldContainer[HostStatus]
    def __init__(self, model: _Optional[str] = ..., served_name: _Optional[str] = ..., state: _Optional[str] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., permanent: _Optional[bool] = ..., counters: _Optional[_Union[Counters, _Mapping[str, _Any]]] = ..., waiting: _Optional[int] = ..., running: _Optional[int] = ..., kv_used_bytes: _Optional[int] = ..., kv_quota_bytes: _Optional[int] = ..., kv_guaranteed_bytes: _Optional[int] = ..., kv_limit_bytes: _Optional[int] = ..., weight_bytes: _Optional[int] = ..., hosts: _Optional[_Iterable[_Union[HostStatus, _Mapping[str, _Any]]]] = ...) -> None: ...

class UnitStatus(_message.Message):
    __slots__ = ("unit", "start_id", "generation", "applied_generation", "members", "kv_total_bytes", "kv_free_bytes", "weights_bytes", "allocator")
    UNIT_FIELD_NUMBER: _ClassVar[int]
    START_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    APPLIED_GENERATION_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    KV_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_BYTES_FIELD_NUMBER: _ClassVar[int]
    ALLOCATOR_FIELD_NUMBER: _ClassVar[int]
    unit: str
    start_id: str
    generation: int
    applied_generation: int
    members: _containers.RepeatedCompositeFieldContainer[MemberStatus]
    kv_total_bytes: int
    kv_free_bytes: int
    weights_bytes: int
    allocator: str
    def __init__(self, unit: _Optional[str] = ..., start_id: _Optional[str] = ..., generation: _Optional[int] = ..., applied_generation: _Optional[int] = ..., members: _Optional[_Iterable[_Union[MemberStatus, _Mapping[str, _Any]]]] = ..., kv_total_bytes: _Optional[int] = ..., kv_free_bytes: _Optional[int] = ..., weights_bytes: _Optional[int] = ..., allocator: _Optional[str] = ...) -> None: ...

class GatewayStatus(_message.Message):
    __slots__ = ("start_id", "generation", "models")
    class ModelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Counters
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Counters, _Mapping[str, _Any]]] = ...) -> None: ...
    START_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    start_id: str
    generation: int
    models: _containers.MessageMap[str, Counters]
    def __init__(self, start_id: _Optional[str] = ..., generation: _Optional[int] = ..., models: _Optional[_Mapping[str, Counters]] = ...) -> None: ...
