from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WorkerState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WORKER_ABSENT: _ClassVar[WorkerState]
    WORKER_STARTING: _ClassVar[WorkerState]
    WORKER_READY: _ClassVar[WorkerState]
    WORKER_COMPUTING: _ClassVar[WorkerState]
    WORKER_BACKING_OFF: _ClassVar[WorkerState]
    WORKER_REFUSED: _ClassVar[WorkerState]
    WORKER_TRAINING: _ClassVar[WorkerState]
WORKER_ABSENT: WorkerState
WORKER_STARTING: WorkerState
WORKER_READY: WorkerState
WORKER_COMPUTING: WorkerState
WORKER_BACKING_OFF: WorkerState
WORKER_REFUSED: WorkerState
WORKER_TRAINING: WorkerState

class Versions(_message.Message):
    __slots__ = ("project", "protocol", "mlx", "mlx_lm", "python", "platform")
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    MLX_FIELD_NUMBER: _ClassVar[int]
    MLX_LM_FIELD_NUMBER: _ClassVar[int]
    PYTHON_FIELD_NUMBER: _ClassVar[int]
    PLATFORM_FIELD_NUMBER: _ClassVar[int]
    project: str
    protocol: int
    mlx: str
    mlx_lm: str
    python: str
    platform: str
    def __init__(self, project: _Optional[str] = ..., protocol: _Optional[int] = ..., mlx: _Optional[str] = ..., mlx_lm: _Optional[str] = ..., python: _Optional[str] = ..., platform: _Optional[str] = ...) -> None: ...

class Device(_message.Message):
    __slots__ = ("chip", "backend", "gpu_cores", "cpu_cores", "memory_bytes", "working_set_bytes", "blas", "blas_core_type")
    CHIP_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    GPU_CORES_FIELD_NUMBER: _ClassVar[int]
    CPU_CORES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    WORKING_SET_BYTES_FIELD_NUMBER: _ClassVar[int]
    BLAS_FIELD_NUMBER: _ClassVar[int]
    BLAS_CORE_TYPE_FIELD_NUMBER: _ClassVar[int]
    chip: str
    backend: str
    gpu_cores: int
    cpu_cores: int
    memory_bytes: int
    working_set_bytes: int
    blas: str
    blas_core_type: str
    def __init__(self, chip: _Optional[str] = ..., backend: _Optional[str] = ..., gpu_cores: _Optional[int] = ..., cpu_cores: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., working_set_bytes: _Optional[int] = ..., blas: _Optional[str] = ..., blas_core_type: _Optional[str] = ...) -> None: ...

class Holder(_message.Message):
    __slots__ = ("run_id", "coordinator", "epoch", "idle_seconds")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    IDLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    coordinator: str
    epoch: int
    idle_seconds: float
    def __init__(self, run_id: _Optional[str] = ..., coordinator: _Optional[str] = ..., epoch: _Optional[int] = ..., idle_seconds: _Optional[float] = ...) -> None: ...

class NodeInfo(_message.Message):
    __slots__ = ("node_id", "name", "versions", "device", "certificate_fingerprint", "models", "holder", "uptime_seconds", "pid")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    name: str
    versions: Versions
    device: Device
    certificate_fingerprint: str
    models: _containers.RepeatedScalarFieldContainer[str]
    holder: Holder
    uptime_seconds: float
    pid: int
    def __init__(self, node_id: _Optional[str] = ..., name: _Optional[str] = ..., versions: _Optional[_Union[Versions, _Mapping]] = ..., device: _Optional[_Union[Device, _Mapping]] = ..., certificate_fingerprint: _Optional[str] = ..., models: _Optional[_Iterable[str]] = ..., holder: _Optional[_Union[Holder, _Mapping]] = ..., uptime_seconds: _Optional[float] = ..., pid: _Optional[int] = ...) -> None: ...

class Health(_message.Message):
    __slots__ = ("memory_total_bytes", "memory_available_bytes", "memory_wired_bytes", "thermal_pressure", "load_1m", "disk_free_bytes", "worker", "worker_pid", "worker_rss_bytes", "spooled_results")
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_AVAILABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_WIRED_BYTES_FIELD_NUMBER: _ClassVar[int]
    THERMAL_PRESSURE_FIELD_NUMBER: _ClassVar[int]
    LOAD_1M_FIELD_NUMBER: _ClassVar[int]
    DISK_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    WORKER_PID_FIELD_NUMBER: _ClassVar[int]
    WORKER_RSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    SPOOLED_RESULTS_FIELD_NUMBER: _ClassVar[int]
    memory_total_bytes: int
    memory_available_bytes: int
    memory_wired_bytes: int
    thermal_pressure: str
    load_1m: float
    disk_free_bytes: int
    worker: WorkerState
    worker_pid: int
    worker_rss_bytes: int
    spooled_results: int
    def __init__(self, memory_total_bytes: _Optional[int] = ..., memory_available_bytes: _Optional[int] = ..., memory_wired_bytes: _Optional[int] = ..., thermal_pressure: _Optional[str] = ..., load_1m: _Optional[float] = ..., disk_free_bytes: _Optional[int] = ..., worker: _Optional[_Union[WorkerState, str]] = ..., worker_pid: _Optional[int] = ..., worker_rss_bytes: _Optional[int] = ..., spooled_results: _Optional[int] = ...) -> None: ...
