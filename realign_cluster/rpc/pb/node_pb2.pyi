from realign_cluster.rpc.pb import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HealthRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CoordinatorMessage(_message.Message):
    __slots__ = ("hello", "prepare", "assign", "revoke", "ack", "beat", "restart_worker", "release", "prepare_training", "rank_order", "rank_ack", "fetch_part", "drop_parts", "join_group")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    PREPARE_FIELD_NUMBER: _ClassVar[int]
    ASSIGN_FIELD_NUMBER: _ClassVar[int]
    REVOKE_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    BEAT_FIELD_NUMBER: _ClassVar[int]
    RESTART_WORKER_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    PREPARE_TRAINING_FIELD_NUMBER: _ClassVar[int]
    RANK_ORDER_FIELD_NUMBER: _ClassVar[int]
    RANK_ACK_FIELD_NUMBER: _ClassVar[int]
    FETCH_PART_FIELD_NUMBER: _ClassVar[int]
    DROP_PARTS_FIELD_NUMBER: _ClassVar[int]
    JOIN_GROUP_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    prepare: Prepare
    assign: Assign
    revoke: Revoke
    ack: Ack
    beat: CoordinatorBeat
    restart_worker: RestartWorker
    release: Release
    prepare_training: PrepareTraining
    rank_order: RankOrder
    rank_ack: RankAck
    fetch_part: FetchPart
    drop_parts: DropParts
    join_group: JoinGroup
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., prepare: _Optional[_Union[Prepare, _Mapping]] = ..., assign: _Optional[_Union[Assign, _Mapping]] = ..., revoke: _Optional[_Union[Revoke, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ..., beat: _Optional[_Union[CoordinatorBeat, _Mapping]] = ..., restart_worker: _Optional[_Union[RestartWorker, _Mapping]] = ..., release: _Optional[_Union[Release, _Mapping]] = ..., prepare_training: _Optional[_Union[PrepareTraining, _Mapping]] = ..., rank_order: _Optional[_Union[RankOrder, _Mapping]] = ..., rank_ack: _Optional[_Union[RankAck, _Mapping]] = ..., fetch_part: _Optional[_Union[FetchPart, _Mapping]] = ..., drop_parts: _Optional[_Union[DropParts, _Mapping]] = ..., join_group: _Optional[_Union[JoinGroup, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("run_id", "epoch", "coordinator", "versions", "lease_seconds", "node_id")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    epoch: int
    coordinator: str
    versions: _common_pb2.Versions
    lease_seconds: float
    node_id: str
    def __init__(self, run_id: _Optional[str] = ..., epoch: _Optional[int] = ..., coordinator: _Optional[str] = ..., versions: _Optional[_Union[_common_pb2.Versions, _Mapping]] = ..., lease_seconds: _Optional[float] = ..., node_id: _Optional[str] = ...) -> None: ...

class Prepare(_message.Message):
    __slots__ = ("job", "measure", "samples", "environment", "nice", "group")
    class EnvironmentEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    JOB_FIELD_NUMBER: _ClassVar[int]
    MEASURE_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_FIELD_NUMBER: _ClassVar[int]
    NICE_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    job: bytes
    measure: str
    samples: _containers.RepeatedScalarFieldContainer[bytes]
    environment: _containers.ScalarMap[str, str]
    nice: int
    group: bytes
    def __init__(self, job: _Optional[bytes] = ..., measure: _Optional[str] = ..., samples: _Optional[_Iterable[bytes]] = ..., environment: _Optional[_Mapping[str, str]] = ..., nice: _Optional[int] = ..., group: _Optional[bytes] = ...) -> None: ...

class JoinGroup(_message.Message):
    __slots__ = ("generation", "addresses")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    generation: int
    addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, generation: _Optional[int] = ..., addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class Assign(_message.Message):
    __slots__ = ("lease", "attempt", "unit", "rows", "count", "cost", "row_ids")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    ROW_IDS_FIELD_NUMBER: _ClassVar[int]
    lease: int
    attempt: int
    unit: int
    rows: bytes
    count: int
    cost: float
    row_ids: bytes
    def __init__(self, lease: _Optional[int] = ..., attempt: _Optional[int] = ..., unit: _Optional[int] = ..., rows: _Optional[bytes] = ..., count: _Optional[int] = ..., cost: _Optional[float] = ..., row_ids: _Optional[bytes] = ...) -> None: ...

class Revoke(_message.Message):
    __slots__ = ("attempts", "reason")
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    attempts: _containers.RepeatedScalarFieldContainer[int]
    reason: str
    def __init__(self, attempts: _Optional[_Iterable[int]] = ..., reason: _Optional[str] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("attempts",)
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    attempts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, attempts: _Optional[_Iterable[int]] = ...) -> None: ...

class CoordinatorBeat(_message.Message):
    __slots__ = ("sequence",)
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    def __init__(self, sequence: _Optional[int] = ...) -> None: ...

class RestartWorker(_message.Message):
    __slots__ = ("reason", "generation")
    REASON_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    reason: str
    generation: int
    def __init__(self, reason: _Optional[str] = ..., generation: _Optional[int] = ...) -> None: ...

class Release(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class PrepareTraining(_message.Message):
    __slots__ = ("job", "environment", "nice")
    class EnvironmentEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    JOB_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_FIELD_NUMBER: _ClassVar[int]
    NICE_FIELD_NUMBER: _ClassVar[int]
    job: bytes
    environment: _containers.ScalarMap[str, str]
    nice: int
    def __init__(self, job: _Optional[bytes] = ..., environment: _Optional[_Mapping[str, str]] = ..., nice: _Optional[int] = ...) -> None: ...

class RankOrder(_message.Message):
    __slots__ = ("generation", "number", "start", "go", "tell", "stop")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    GO_FIELD_NUMBER: _ClassVar[int]
    TELL_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    generation: int
    number: int
    start: StartRank
    go: Go
    tell: TellRank
    stop: StopRank
    def __init__(self, generation: _Optional[int] = ..., number: _Optional[int] = ..., start: _Optional[_Union[StartRank, _Mapping]] = ..., go: _Optional[_Union[Go, _Mapping]] = ..., tell: _Optional[_Union[TellRank, _Mapping]] = ..., stop: _Optional[_Union[StopRank, _Mapping]] = ...) -> None: ...

class StartRank(_message.Message):
    __slots__ = ("spec",)
    SPEC_FIELD_NUMBER: _ClassVar[int]
    spec: bytes
    def __init__(self, spec: _Optional[bytes] = ...) -> None: ...

class Go(_message.Message):
    __slots__ = ("addresses",)
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class TellRank(_message.Message):
    __slots__ = ("message",)
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    message: bytes
    def __init__(self, message: _Optional[bytes] = ...) -> None: ...

class StopRank(_message.Message):
    __slots__ = ("kill", "reason", "grace_seconds")
    KILL_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    GRACE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    kill: bool
    reason: str
    grace_seconds: float
    def __init__(self, kill: bool = ..., reason: _Optional[str] = ..., grace_seconds: _Optional[float] = ...) -> None: ...

class RankAck(_message.Message):
    __slots__ = ("generation", "sequence")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    generation: int
    sequence: int
    def __init__(self, generation: _Optional[int] = ..., sequence: _Optional[int] = ...) -> None: ...

class FetchPart(_message.Message):
    __slots__ = ("part", "address", "node_id")
    PART_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    part: bytes
    address: str
    node_id: str
    def __init__(self, part: _Optional[bytes] = ..., address: _Optional[str] = ..., node_id: _Optional[str] = ...) -> None: ...

class DropParts(_message.Message):
    __slots__ = ("parts",)
    PARTS_FIELD_NUMBER: _ClassVar[int]
    parts: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, parts: _Optional[_Iterable[bytes]] = ...) -> None: ...

class NodeMessage(_message.Message):
    __slots__ = ("welcome", "refusal", "beat", "model_needed", "worker_ready", "worker_exited", "result", "unit_failed", "worker_refused", "measuring", "training_ready", "rank_report", "rank_exited", "part_fetched", "worker_waiting")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    BEAT_FIELD_NUMBER: _ClassVar[int]
    MODEL_NEEDED_FIELD_NUMBER: _ClassVar[int]
    WORKER_READY_FIELD_NUMBER: _ClassVar[int]
    WORKER_EXITED_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    UNIT_FAILED_FIELD_NUMBER: _ClassVar[int]
    WORKER_REFUSED_FIELD_NUMBER: _ClassVar[int]
    MEASURING_FIELD_NUMBER: _ClassVar[int]
    TRAINING_READY_FIELD_NUMBER: _ClassVar[int]
    RANK_REPORT_FIELD_NUMBER: _ClassVar[int]
    RANK_EXITED_FIELD_NUMBER: _ClassVar[int]
    PART_FETCHED_FIELD_NUMBER: _ClassVar[int]
    WORKER_WAITING_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    refusal: Refusal
    beat: NodeBeat
    model_needed: ModelNeeded
    worker_ready: WorkerReady
    worker_exited: WorkerExited
    result: Result
    unit_failed: UnitFailed
    worker_refused: WorkerRefused
    measuring: Measuring
    training_ready: TrainingReady
    rank_report: RankReport
    rank_exited: RankExited
    part_fetched: PartFetched
    worker_waiting: WorkerWaiting
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., beat: _Optional[_Union[NodeBeat, _Mapping]] = ..., model_needed: _Optional[_Union[ModelNeeded, _Mapping]] = ..., worker_ready: _Optional[_Union[WorkerReady, _Mapping]] = ..., worker_exited: _Optional[_Union[WorkerExited, _Mapping]] = ..., result: _Optional[_Union[Result, _Mapping]] = ..., unit_failed: _Optional[_Union[UnitFailed, _Mapping]] = ..., worker_refused: _Optional[_Union[WorkerRefused, _Mapping]] = ..., measuring: _Optional[_Union[Measuring, _Mapping]] = ..., training_ready: _Optional[_Union[TrainingReady, _Mapping]] = ..., rank_report: _Optional[_Union[RankReport, _Mapping]] = ..., rank_exited: _Optional[_Union[RankExited, _Mapping]] = ..., part_fetched: _Optional[_Union[PartFetched, _Mapping]] = ..., worker_waiting: _Optional[_Union[WorkerWaiting, _Mapping]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("info", "spooled_attempts")
    INFO_FIELD_NUMBER: _ClassVar[int]
    SPOOLED_ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    info: _common_pb2.NodeInfo
    spooled_attempts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, info: _Optional[_Union[_common_pb2.NodeInfo, _Mapping]] = ..., spooled_attempts: _Optional[_Iterable[int]] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("code", "message", "holder")
    class Code(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNSPECIFIED: _ClassVar[Refusal.Code]
        HELD: _ClassVar[Refusal.Code]
        VERSION: _ClassVar[Refusal.Code]
        IDENTITY: _ClassVar[Refusal.Code]
        STALE_EPOCH: _ClassVar[Refusal.Code]
        STOPPING: _ClassVar[Refusal.Code]
        DISK_FULL: _ClassVar[Refusal.Code]
    UNSPECIFIED: Refusal.Code
    HELD: Refusal.Code
    VERSION: Refusal.Code
    IDENTITY: Refusal.Code
    STALE_EPOCH: Refusal.Code
    STOPPING: Refusal.Code
    DISK_FULL: Refusal.Code
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    code: Refusal.Code
    message: str
    holder: _common_pb2.Holder
    def __init__(self, code: _Optional[_Union[Refusal.Code, str]] = ..., message: _Optional[str] = ..., holder: _Optional[_Union[_common_pb2.Holder, _Mapping]] = ...) -> None: ...

class NodeBeat(_message.Message):
    __slots__ = ("sequence", "health", "computing_attempt", "progress", "phase", "rank")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    HEALTH_FIELD_NUMBER: _ClassVar[int]
    COMPUTING_ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    health: _common_pb2.Health
    computing_attempt: int
    progress: int
    phase: str
    rank: RankBeat
    def __init__(self, sequence: _Optional[int] = ..., health: _Optional[_Union[_common_pb2.Health, _Mapping]] = ..., computing_attempt: _Optional[int] = ..., progress: _Optional[int] = ..., phase: _Optional[str] = ..., rank: _Optional[_Union[RankBeat, _Mapping]] = ...) -> None: ...

class RankBeat(_message.Message):
    __slots__ = ("generation", "rank", "section", "step", "progress", "pid", "orders")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    SECTION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    ORDERS_FIELD_NUMBER: _ClassVar[int]
    generation: int
    rank: int
    section: str
    step: int
    progress: int
    pid: int
    orders: int
    def __init__(self, generation: _Optional[int] = ..., rank: _Optional[int] = ..., section: _Optional[str] = ..., step: _Optional[int] = ..., progress: _Optional[int] = ..., pid: _Optional[int] = ..., orders: _Optional[int] = ...) -> None: ...

class ModelNeeded(_message.Message):
    __slots__ = ("model_hash",)
    MODEL_HASH_FIELD_NUMBER: _ClassVar[int]
    model_hash: str
    def __init__(self, model_hash: _Optional[str] = ...) -> None: ...

class WorkerReady(_message.Message):
    __slots__ = ("report", "pid", "generation")
    REPORT_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    report: bytes
    pid: int
    generation: int
    def __init__(self, report: _Optional[bytes] = ..., pid: _Optional[int] = ..., generation: _Optional[int] = ...) -> None: ...

class WorkerWaiting(_message.Message):
    __slots__ = ("generation", "pid", "port")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    generation: int
    pid: int
    port: int
    def __init__(self, generation: _Optional[int] = ..., pid: _Optional[int] = ..., port: _Optional[int] = ...) -> None: ...

class WorkerExited(_message.Message):
    __slots__ = ("generation", "reason", "computing_attempt", "lost_attempts", "asked", "back_off_seconds", "last_lines")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    COMPUTING_ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    LOST_ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    ASKED_FIELD_NUMBER: _ClassVar[int]
    BACK_OFF_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LAST_LINES_FIELD_NUMBER: _ClassVar[int]
    generation: int
    reason: str
    computing_attempt: int
    lost_attempts: _containers.RepeatedScalarFieldContainer[int]
    asked: bool
    back_off_seconds: float
    last_lines: str
    def __init__(self, generation: _Optional[int] = ..., reason: _Optional[str] = ..., computing_attempt: _Optional[int] = ..., lost_attempts: _Optional[_Iterable[int]] = ..., asked: bool = ..., back_off_seconds: _Optional[float] = ..., last_lines: _Optional[str] = ...) -> None: ...

class Result(_message.Message):
    __slots__ = ("attempt", "unit", "epoch", "payload", "checksum", "compute_seconds", "tokens", "rows", "shape", "lease")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    unit: int
    epoch: int
    payload: bytes
    checksum: bytes
    compute_seconds: float
    tokens: int
    rows: int
    shape: str
    lease: int
    def __init__(self, attempt: _Optional[int] = ..., unit: _Optional[int] = ..., epoch: _Optional[int] = ..., payload: _Optional[bytes] = ..., checksum: _Optional[bytes] = ..., compute_seconds: _Optional[float] = ..., tokens: _Optional[int] = ..., rows: _Optional[int] = ..., shape: _Optional[str] = ..., lease: _Optional[int] = ...) -> None: ...

class UnitFailed(_message.Message):
    __slots__ = ("attempt", "unit", "code", "message", "row", "epoch")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ROW_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    unit: int
    code: str
    message: str
    row: int
    epoch: int
    def __init__(self, attempt: _Optional[int] = ..., unit: _Optional[int] = ..., code: _Optional[str] = ..., message: _Optional[str] = ..., row: _Optional[int] = ..., epoch: _Optional[int] = ...) -> None: ...

class WorkerRefused(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class Measuring(_message.Message):
    __slots__ = ("what", "fraction")
    WHAT_FIELD_NUMBER: _ClassVar[int]
    FRACTION_FIELD_NUMBER: _ClassVar[int]
    what: str
    fraction: float
    def __init__(self, what: _Optional[str] = ..., fraction: _Optional[float] = ...) -> None: ...

class TrainingReady(_message.Message):
    __slots__ = ("parts", "generation", "running", "orders", "boot")
    PARTS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    ORDERS_FIELD_NUMBER: _ClassVar[int]
    BOOT_FIELD_NUMBER: _ClassVar[int]
    parts: _containers.RepeatedScalarFieldContainer[bytes]
    generation: int
    running: bool
    orders: int
    boot: str
    def __init__(self, parts: _Optional[_Iterable[bytes]] = ..., generation: _Optional[int] = ..., running: bool = ..., orders: _Optional[int] = ..., boot: _Optional[str] = ...) -> None: ...

class RankReport(_message.Message):
    __slots__ = ("generation", "sequence", "body", "rank")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    generation: int
    sequence: int
    body: bytes
    rank: int
    def __init__(self, generation: _Optional[int] = ..., sequence: _Optional[int] = ..., body: _Optional[bytes] = ..., rank: _Optional[int] = ...) -> None: ...

class RankExited(_message.Message):
    __slots__ = ("generation", "sequence", "rank", "reason", "asked", "wedged", "last_lines")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ASKED_FIELD_NUMBER: _ClassVar[int]
    WEDGED_FIELD_NUMBER: _ClassVar[int]
    LAST_LINES_FIELD_NUMBER: _ClassVar[int]
    generation: int
    sequence: int
    rank: int
    reason: str
    asked: bool
    wedged: bool
    last_lines: str
    def __init__(self, generation: _Optional[int] = ..., sequence: _Optional[int] = ..., rank: _Optional[int] = ..., reason: _Optional[str] = ..., asked: bool = ..., wedged: bool = ..., last_lines: _Optional[str] = ...) -> None: ...

class PartFetched(_message.Message):
    __slots__ = ("part", "error", "corrupt")
    PART_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    CORRUPT_FIELD_NUMBER: _ClassVar[int]
    part: bytes
    error: str
    corrupt: bool
    def __init__(self, part: _Optional[bytes] = ..., error: _Optional[str] = ..., corrupt: bool = ...) -> None: ...

class ModelFile(_message.Message):
    __slots__ = ("path", "size", "blake2b")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    BLAKE2B_FIELD_NUMBER: _ClassVar[int]
    path: str
    size: int
    blake2b: str
    def __init__(self, path: _Optional[str] = ..., size: _Optional[int] = ..., blake2b: _Optional[str] = ...) -> None: ...

class ModelManifest(_message.Message):
    __slots__ = ("model_hash", "name", "files")
    MODEL_HASH_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    model_hash: str
    name: str
    files: _containers.RepeatedCompositeFieldContainer[ModelFile]
    def __init__(self, model_hash: _Optional[str] = ..., name: _Optional[str] = ..., files: _Optional[_Iterable[_Union[ModelFile, _Mapping]]] = ...) -> None: ...

class ModelProgress(_message.Message):
    __slots__ = ("received", "complete", "disk_free_bytes")
    class ReceivedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    DISK_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    received: _containers.ScalarMap[str, int]
    complete: bool
    disk_free_bytes: int
    def __init__(self, received: _Optional[_Mapping[str, int]] = ..., complete: bool = ..., disk_free_bytes: _Optional[int] = ...) -> None: ...

class ModelChunk(_message.Message):
    __slots__ = ("model_hash", "path", "offset", "data", "manifest")
    MODEL_HASH_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    model_hash: str
    path: str
    offset: int
    data: bytes
    manifest: ModelManifest
    def __init__(self, model_hash: _Optional[str] = ..., path: _Optional[str] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ..., manifest: _Optional[_Union[ModelManifest, _Mapping]] = ...) -> None: ...

class PartRequest(_message.Message):
    __slots__ = ("run_id", "part", "offset")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    part: bytes
    offset: int
    def __init__(self, run_id: _Optional[str] = ..., part: _Optional[bytes] = ..., offset: _Optional[int] = ...) -> None: ...

class PartChunk(_message.Message):
    __slots__ = ("run_id", "part", "manifest", "offset", "data")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    part: bytes
    manifest: bytes
    offset: int
    data: bytes
    def __init__(self, run_id: _Optional[str] = ..., part: _Optional[bytes] = ..., manifest: _Optional[bytes] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class PartWritten(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LogsRequest(_message.Message):
    __slots__ = ("stream", "last_bytes", "follow")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    LAST_BYTES_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    stream: str
    last_bytes: int
    follow: bool
    def __init__(self, stream: _Optional[str] = ..., last_bytes: _Optional[int] = ..., follow: bool = ...) -> None: ...

class LogChunk(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class EchoMessage(_message.Message):
    __slots__ = ("data", "reply_bytes")
    DATA_FIELD_NUMBER: _ClassVar[int]
    REPLY_BYTES_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    reply_bytes: int
    def __init__(self, data: _Optional[bytes] = ..., reply_bytes: _Optional[int] = ...) -> None: ...

class LinkRequest(_message.Message):
    __slots__ = ("address", "node_id", "bytes", "rounds")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    address: str
    node_id: str
    bytes: int
    rounds: int
    def __init__(self, address: _Optional[str] = ..., node_id: _Optional[str] = ..., bytes: _Optional[int] = ..., rounds: _Optional[int] = ...) -> None: ...

class LinkReport(_message.Message):
    __slots__ = ("round_trip_seconds", "bytes_per_second", "error")
    ROUND_TRIP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    round_trip_seconds: float
    bytes_per_second: float
    error: str
    def __init__(self, round_trip_seconds: _Optional[float] = ..., bytes_per_second: _Optional[float] = ..., error: _Optional[str] = ...) -> None: ...
