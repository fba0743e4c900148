"""The QAPI types as attrs classes; what stands here is made on first use by _build.py.

Generated from schemas/ by tools/gen_qapi.py: don't edit.
"""

# ruff: noqa: PYI021
import builtins
import enum
from typing import TypeAlias, final

import attrs

from ._base import NULL as NULL
from ._base import QapiNull as QapiNull
from ._base import QapiObject as QapiObject

@final
class ActionCompletionMode(enum.Enum):
    INDIVIDUAL = "individual"
    GROUPED = "grouped"

@final
class BitmapSyncMode(enum.Enum):
    ON_SUCCESS = "on-success"
    NEVER = "never"
    ALWAYS = "always"

@final
class BlkdebugEvent(enum.Enum):
    L1_UPDATE = "l1_update"
    L1_GROW_ALLOC_TABLE = "l1_grow_alloc_table"
    L1_GROW_WRITE_TABLE = "l1_grow_write_table"
    L1_GROW_ACTIVATE_TABLE = "l1_grow_activate_table"
    L2_LOAD = "l2_load"
    L2_UPDATE = "l2_update"
    L2_UPDATE_COMPRESSED = "l2_update_compressed"
    L2_ALLOC_COW_READ = "l2_alloc_cow_read"
    L2_ALLOC_WRITE = "l2_alloc_write"
    READ_AIO = "read_aio"
    READ_BACKING_AIO = "read_backing_aio"
    READ_COMPRESSED = "read_compressed"
    WRITE_AIO = "write_aio"
    WRITE_COMPRESSED = "write_compressed"
    VMSTATE_LOAD = "vmstate_load"
    VMSTATE_SAVE = "vmstate_save"
    COW_READ = "cow_read"
    COW_WRITE = "cow_write"
    REFTABLE_LOAD = "reftable_load"
    REFTABLE_GROW = "reftable_grow"
    REFTABLE_UPDATE = "reftable_update"
    REFBLOCK_LOAD = "refblock_load"
    REFBLOCK_UPDATE = "refblock_update"
    REFBLOCK_UPDATE_PART = "refblock_update_part"
    REFBLOCK_ALLOC = "refblock_alloc"
    REFBLOCK_ALLOC_HOOKUP = "refblock_alloc_hookup"
    REFBLOCK_ALLOC_WRITE = "refblock_alloc_write"
    REFBLOCK_ALLOC_WRITE_BLOCKS = "refblock_alloc_write_blocks"
    REFBLOCK_ALLOC_WRITE_TABLE = "refblock_alloc_write_table"
    REFBLOCK_ALLOC_SWITCH_TABLE = "refblock_alloc_switch_table"
    CLUSTER_ALLOC = "cluster_alloc"
    CLUSTER_ALLOC_BYTES = "cluster_alloc_bytes"
    CLUSTER_FREE = "cluster_free"
    FLUSH_TO_OS = "flush_to_os"
    FLUSH_TO_DISK = "flush_to_disk"
    PWRITEV_RMW_HEAD = "pwritev_rmw_head"
    PWRITEV_RMW_AFTER_HEAD = "pwritev_rmw_after_head"
    PWRITEV_RMW_TAIL = "pwritev_rmw_tail"
    PWRITEV_RMW_AFTER_TAIL = "pwritev_rmw_after_tail"
    PWRITEV = "pwritev"
    PWRITEV_ZERO = "pwritev_zero"
    PWRITEV_DONE = "pwritev_done"
    EMPTY_IMAGE_PREPARE = "empty_image_prepare"
    L1_SHRINK_WRITE_TABLE = "l1_shrink_write_table"
    L1_SHRINK_FREE_L2_CLUSTERS = "l1_shrink_free_l2_clusters"
    COR_WRITE = "cor_write"
    CLUSTER_ALLOC_SPACE = "cluster_alloc_space"
    NONE = "none"

@final
class BlkdebugIOType(enum.Enum):
    READ = "read"
    WRITE = "write"
    WRITE_ZEROES = "write-zeroes"
    DISCARD = "discard"
    FLUSH = "flush"
    BLOCK_STATUS = "block-status"

@final
class BlockDeviceIoStatus(enum.Enum):
    OK = "ok"
    FAILED = "failed"
    NOSPACE = "nospace"

@final
class BlockErrorAction(enum.Enum):
    IGNORE = "ignore"
    REPORT = "report"
    STOP = "stop"

@final
class BlockExportRemoveMode(enum.Enum):
    SAFE = "safe"
    HARD = "hard"

@final
class BlockExportType(enum.Enum):
    NBD = "nbd"
    VHOST_USER_BLK = "vhost-user-blk"
    FUSE = "fuse"
    VDUSE_BLK = "vduse-blk"

@final
class BlockPermission(enum.Enum):
    CONSISTENT_READ = "consistent-read"
    WRITE = "write"
    WRITE_UNCHANGED = "write-unchanged"
    RESIZE = "resize"

@final
class BlockdevAioOptions(enum.Enum):
    THREADS = "threads"
    NATIVE = "native"
    IO_URING = "io_uring"

@final
class BlockdevDetectZeroesOptions(enum.Enum):
    OFF = "off"
    ON = "on"
    UNMAP = "unmap"

@final
class BlockdevDiscardOptions(enum.Enum):
    IGNORE = "ignore"
    UNMAP = "unmap"

@final
class BlockdevDriver(enum.Enum):
    BLKDEBUG = "blkdebug"
    BLKLOGWRITES = "blklogwrites"
    BLKREPLAY = "blkreplay"
    BLKVERIFY = "blkverify"
    BOCHS = "bochs"
    CLOOP = "cloop"
    COMPRESS = "compress"
    COPY_BEFORE_WRITE = "copy-before-write"
    COPY_ON_READ = "copy-on-read"
    DMG = "dmg"
    FILE = "file"
    SNAPSHOT_ACCESS = "snapshot-access"
    FTP = "ftp"
    FTPS = "ftps"
    GLUSTER = "gluster"
    HOST_CDROM = "host_cdrom"
    HOST_DEVICE = "host_device"
    HTTP = "http"
    HTTPS = "https"
    ISCSI = "iscsi"
    LUKS = "luks"
    NBD = "nbd"
    NFS = "nfs"
    NULL_AIO = "null-aio"
    NULL_CO = "null-co"
    NVME = "nvme"
    PARALLELS = "parallels"
    PREALLOCATE = "preallocate"
    QCOW = "qcow"
    QCOW2 = "qcow2"
    QED = "qed"
    QUORUM = "quorum"
    RAW = "raw"
    RBD = "rbd"
    REPLICATION = "replication"
    SSH = "ssh"
    THROTTLE = "throttle"
    VDI = "vdi"
    VHDX = "vhdx"
    VMDK = "vmdk"
    VPC = "vpc"
    VVFAT = "vvfat"

@final
class BlockdevOnError(enum.Enum):
    REPORT = "report"
    IGNORE = "ignore"
    ENOSPC = "enospc"
    STOP = "stop"
    AUTO = "auto"

@final
class BlockdevQcow2EncryptionFormat(enum.Enum):
    AES = "aes"
    LUKS = "luks"

@final
class BlockdevQcow2Version(enum.Enum):
    V2 = "v2"
    V3 = "v3"

@final
class BlockdevQcowEncryptionFormat(enum.Enum):
    AES = "aes"

@final
class BlockdevVhdxSubformat(enum.Enum):
    DYNAMIC = "dynamic"
    FIXED = "fixed"

@final
class BlockdevVmdkAdapterType(enum.Enum):
    IDE = "ide"
    BUSLOGIC = "buslogic"
    LSILOGIC = "lsilogic"
    LEGACYESX = "legacyESX"

@final
class BlockdevVmdkSubformat(enum.Enum):
    MONOLITHICSPARSE = "monolithicSparse"
    MONOLITHICFLAT = "monolithicFlat"
    TWOGBMAXEXTENTSPARSE = "twoGbMaxExtentSparse"
    TWOGBMAXEXTENTFLAT = "twoGbMaxExtentFlat"
    STREAMOPTIMIZED = "streamOptimized"

@final
class BlockdevVpcSubformat(enum.Enum):
    DYNAMIC = "dynamic"
    FIXED = "fixed"

@final
class ChardevBackendKind(enum.Enum):
    FILE = "file"
    SERIAL = "serial"
    PARALLEL = "parallel"
    PIPE = "pipe"
    SOCKET = "socket"
    UDP = "udp"
    PTY = "pty"
    NULL = "null"
    MUX = "mux"
    MSMOUSE = "msmouse"
    WCTABLET = "wctablet"
    BRAILLE = "braille"
    TESTDEV = "testdev"
    STDIO = "stdio"
    CONSOLE = "console"
    SPICEVMC = "spicevmc"
    SPICEPORT = "spiceport"
    QEMU_VDAGENT = "qemu-vdagent"
    DBUS = "dbus"
    VC = "vc"
    RINGBUF = "ringbuf"
    MEMORY = "memory"
    HUB = "hub"

@final
class ChardevVCEncoding(enum.Enum):
    CP437 = "cp437"
    UTF8 = "utf8"

@final
class DataFormat(enum.Enum):
    UTF8 = "utf8"
    BASE64 = "base64"

@final
class FuseExportAllowOther(enum.Enum):
    OFF = "off"
    ON = "on"
    AUTO = "auto"

@final
class GrabToggleKeys(enum.Enum):
    CTRL_CTRL = "ctrl-ctrl"
    ALT_ALT = "alt-alt"
    SHIFT_SHIFT = "shift-shift"
    META_META = "meta-meta"
    SCROLLLOCK = "scrolllock"
    CTRL_SCROLLLOCK = "ctrl-scrolllock"

@final
class HostMemPolicy(enum.Enum):
    DEFAULT = "default"
    PREFERRED = "preferred"
    BIND = "bind"
    INTERLEAVE = "interleave"

@final
class ImageInfoSpecificKind(enum.Enum):
    LUKS = "luks"
    RBD = "rbd"
    QCOW2 = "qcow2"
    VMDK = "vmdk"
    FILE = "file"

@final
class IoOperationType(enum.Enum):
    READ = "read"
    WRITE = "write"

@final
class IscsiHeaderDigest(enum.Enum):
    CRC32C = "crc32c"
    NONE = "none"
    CRC32C_NONE = "crc32c-none"
    NONE_CRC32C = "none-crc32c"

@final
class IscsiTransport(enum.Enum):
    TCP = "tcp"
    ISER = "iser"

@final
class JSONType(enum.Enum):
    STRING = "string"
    NUMBER = "number"
    INT = "int"
    BOOLEAN = "boolean"
    NULL = "null"
    OBJECT = "object"
    ARRAY = "array"
    VALUE = "value"

@final
class JobStatus(enum.Enum):
    UNDEFINED = "undefined"
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    READY = "ready"
    STANDBY = "standby"
    WAITING = "waiting"
    PENDING = "pending"
    ABORTING = "aborting"
    CONCLUDED = "concluded"
    NULL = "null"

@final
class JobType(enum.Enum):
    COMMIT = "commit"
    STREAM = "stream"
    MIRROR = "mirror"
    BACKUP = "backup"
    CREATE = "create"
    AMEND = "amend"
    SNAPSHOT_LOAD = "snapshot-load"
    SNAPSHOT_SAVE = "snapshot-save"
    SNAPSHOT_DELETE = "snapshot-delete"

@final
class JobVerb(enum.Enum):
    CANCEL = "cancel"
    PAUSE = "pause"
    RESUME = "resume"
    SET_SPEED = "set-speed"
    COMPLETE = "complete"
    DISMISS = "dismiss"
    FINALIZE = "finalize"

@final
class MirrorCopyMode(enum.Enum):
    BACKGROUND = "background"
    WRITE_BLOCKING = "write-blocking"

@final
class MirrorSyncMode(enum.Enum):
    TOP = "top"
    FULL = "full"
    NONE = "none"
    INCREMENTAL = "incremental"
    BITMAP = "bitmap"

@final
class MonitorMode(enum.Enum):
    READLINE = "readline"
    CONTROL = "control"

@final
class MonitorQMPCloseAction(enum.Enum):
    NONE = "none"
    DELETE = "delete"

@final
class NFSTransport(enum.Enum):
    INET = "inet"

@final
class NetFilterDirection(enum.Enum):
    ALL = "all"
    RX = "rx"
    TX = "tx"

@final
class NetfilterInsert(enum.Enum):
    BEFORE = "before"
    BEHIND = "behind"

@final
class NetworkAddressFamily(enum.Enum):
    IPV4 = "ipv4"
    IPV6 = "ipv6"
    UNIX = "unix"
    VSOCK = "vsock"
    UNKNOWN = "unknown"

@final
class NewImageMode(enum.Enum):
    EXISTING = "existing"
    ABSOLUTE_PATHS = "absolute-paths"

@final
class ObjectType(enum.Enum):
    AUTHZ_LIST = "authz-list"
    AUTHZ_LISTFILE = "authz-listfile"
    AUTHZ_PAM = "authz-pam"
    AUTHZ_SIMPLE = "authz-simple"
    CAN_BUS = "can-bus"
    CAN_HOST_SOCKETCAN = "can-host-socketcan"
    COLO_COMPARE = "colo-compare"
    CRYPTODEV_BACKEND = "cryptodev-backend"
    CRYPTODEV_BACKEND_BUILTIN = "cryptodev-backend-builtin"
    CRYPTODEV_BACKEND_LKCF = "cryptodev-backend-lkcf"
    CRYPTODEV_VHOST_USER = "cryptodev-vhost-user"
    DBUS_VMSTATE = "dbus-vmstate"
    FILTER_BUFFER = "filter-buffer"
    FILTER_DUMP = "filter-dump"
    FILTER_MIRROR = "filter-mirror"
    FILTER_REDIRECTOR = "filter-redirector"
    FILTER_REPLAY = "filter-replay"
    FILTER_REWRITER = "filter-rewriter"
    INPUT_BARRIER = "input-barrier"
    INPUT_LINUX = "input-linux"
    IOTHREAD = "iothread"
    MAIN_LOOP = "main-loop"
    MEMORY_BACKEND_EPC = "memory-backend-epc"
    MEMORY_BACKEND_FILE = "memory-backend-file"
    MEMORY_BACKEND_MEMFD = "memory-backend-memfd"
    MEMORY_BACKEND_RAM = "memory-backend-ram"
    PEF_GUEST = "pef-guest"
    PR_MANAGER_HELPER = "pr-manager-helper"
    QTEST = "qtest"
    RNG_BUILTIN = "rng-builtin"
    RNG_EGD = "rng-egd"
    RNG_RANDOM = "rng-random"
    SECRET = "secret"
    SECRET_KEYRING = "secret_keyring"
    SEV_GUEST = "sev-guest"
    THREAD_CONTEXT = "thread-context"
    S390_PV_GUEST = "s390-pv-guest"
    THROTTLE_GROUP = "throttle-group"
    TLS_CREDS_ANON = "tls-creds-anon"
    TLS_CREDS_PSK = "tls-creds-psk"
    TLS_CREDS_X509 = "tls-creds-x509"
    TLS_CIPHER_SUITES = "tls-cipher-suites"
    X_REMOTE_OBJECT = "x-remote-object"
    X_VFIO_USER_SERVER = "x-vfio-user-server"
    ACPI_GENERIC_INITIATOR = "acpi-generic-initiator"
    ACPI_GENERIC_PORT = "acpi-generic-port"
    IOMMUFD = "iommufd"
    MEMORY_BACKEND_SHM = "memory-backend-shm"
    MONITOR_HMP = "monitor-hmp"
    MONITOR_QMP = "monitor-qmp"
    SEV_SNP_GUEST = "sev-snp-guest"
    TDX_GUEST = "tdx-guest"

@final
class OffAutoPCIBAR(enum.Enum):
    OFF = "off"
    AUTO = "auto"
    BAR0 = "bar0"
    BAR1 = "bar1"
    BAR2 = "bar2"
    BAR3 = "bar3"
    BAR4 = "bar4"
    BAR5 = "bar5"

@final
class OnCbwError(enum.Enum):
    BREAK_GUEST_WRITE = "break-guest-write"
    BREAK_SNAPSHOT = "break-snapshot"

@final
class OnOffAuto(enum.Enum):
    AUTO = "auto"
    ON = "on"
    OFF = "off"

@final
class OnOffSplit(enum.Enum):
    ON = "on"
    OFF = "off"
    SPLIT = "split"

@final
class PCIELinkSpeed(enum.Enum):
    _2_5 = "2_5"
    _5 = "5"
    _8 = "8"
    _16 = "16"

@final
class PCIELinkWidth(enum.Enum):
    _1 = "1"
    _2 = "2"
    _4 = "4"
    _8 = "8"
    _12 = "12"
    _16 = "16"
    _32 = "32"

@final
class PreallocMode(enum.Enum):
    OFF = "off"
    METADATA = "metadata"
    FALLOC = "falloc"
    FULL = "full"

@final
class QAuthZListFormat(enum.Enum):
    EXACT = "exact"
    GLOB = "glob"

@final
class QAuthZListPolicy(enum.Enum):
    DENY = "deny"
    ALLOW = "allow"

@final
class QCryptoAkCipherAlgorithm(enum.Enum):
    RSA = "rsa"

@final
class QCryptoAkCipherKeyType(enum.Enum):
    PUBLIC = "public"
    PRIVATE = "private"

@final
class QCryptoBlockFormat(enum.Enum):
    QCOW = "qcow"
    LUKS = "luks"

@final
class QCryptoBlockLUKSKeyslotState(enum.Enum):
    ACTIVE = "active"
    INACTIVE = "inactive"

@final
class QCryptoCipherAlgo(enum.Enum):
    AES_128 = "aes-128"
    AES_192 = "aes-192"
    AES_256 = "aes-256"
    DES = "des"
    _3DES = "3des"
    CAST5_128 = "cast5-128"
    SERPENT_128 = "serpent-128"
    SERPENT_192 = "serpent-192"
    SERPENT_256 = "serpent-256"
    TWOFISH_128 = "twofish-128"
    TWOFISH_192 = "twofish-192"
    TWOFISH_256 = "twofish-256"
    SM4 = "sm4"

@final
class QCryptoCipherAlgorithm(enum.Enum):
    AES_128 = "aes-128"
    AES_192 = "aes-192"
    AES_256 = "aes-256"
    DES = "des"
    _3DES = "3des"
    CAST5_128 = "cast5-128"
    SERPENT_128 = "serpent-128"
    SERPENT_192 = "serpent-192"
    SERPENT_256 = "serpent-256"
    TWOFISH_128 = "twofish-128"
    TWOFISH_192 = "twofish-192"
    TWOFISH_256 = "twofish-256"

@final
class QCryptoCipherMode(enum.Enum):
    ECB = "ecb"
    CBC = "cbc"
    XTS = "xts"
    CTR = "ctr"

@final
class QCryptoHashAlgo(enum.Enum):
    MD5 = "md5"
    SHA1 = "sha1"
    SHA224 = "sha224"
    SHA256 = "sha256"
    SHA384 = "sha384"
    SHA512 = "sha512"
    RIPEMD160 = "ripemd160"
    SM3 = "sm3"

@final
class QCryptoHashAlgorithm(enum.Enum):
    MD5 = "md5"
    SHA1 = "sha1"
    SHA224 = "sha224"
    SHA256 = "sha256"
    SHA384 = "sha384"
    SHA512 = "sha512"
    RIPEMD160 = "ripemd160"

@final
class QCryptoIVGenAlgo(enum.Enum):
    PLAIN = "plain"
    PLAIN64 = "plain64"
    ESSIV = "essiv"

@final
class QCryptoIVGenAlgorithm(enum.Enum):
    PLAIN = "plain"
    PLAIN64 = "plain64"
    ESSIV = "essiv"

@final
class QCryptoRSAPaddingAlgorithm(enum.Enum):
    RAW = "raw"
    PKCS1 = "pkcs1"

@final
class QCryptoSecretFormat(enum.Enum):
    RAW = "raw"
    BASE64 = "base64"

@final
class QCryptoTLSCredsEndpoint(enum.Enum):
    CLIENT = "client"
    SERVER = "server"

@final
class QMPCapability(enum.Enum):
    OOB = "oob"

@final
class Qcow2BitmapInfoFlags(enum.Enum):
    IN_USE = "in-use"
    AUTO = "auto"

@final
class Qcow2CompressionType(enum.Enum):
    ZLIB = "zlib"
    ZSTD = "zstd"

@final
class Qcow2OverlapCheckMode(enum.Enum):
    NONE = "none"
    CONSTANT = "constant"
    CACHED = "cached"
    ALL = "all"

@final
class QuorumOpType(enum.Enum):
    READ = "read"
    WRITE = "write"
    FLUSH = "flush"

@final
class QuorumReadPattern(enum.Enum):
    QUORUM = "quorum"
    FIFO = "fifo"

@final
class RbdAuthMode(enum.Enum):
    CEPHX = "cephx"
    NONE = "none"

@final
class RbdImageEncryptionFormat(enum.Enum):
    LUKS = "luks"
    LUKS2 = "luks2"
    LUKS_ANY = "luks-any"

@final
class ReplicationMode(enum.Enum):
    PRIMARY = "primary"
    SECONDARY = "secondary"

@final
class SchemaMetaType(enum.Enum):
    BUILTIN = "builtin"
    ENUM = "enum"
    ARRAY = "array"
    OBJECT = "object"
    ALTERNATE = "alternate"
    COMMAND = "command"
    EVENT = "event"

@final
class SocketAddressType(enum.Enum):
    INET = "inet"
    UNIX = "unix"
    VSOCK = "vsock"
    FD = "fd"

@final
class SshHostKeyCheckHashType(enum.Enum):
    MD5 = "md5"
    SHA1 = "sha1"
    SHA256 = "sha256"

@final
class SshHostKeyCheckMode(enum.Enum):
    NONE = "none"
    HASH = "hash"
    KNOWN_HOSTS = "known_hosts"

@final
class TransactionActionKind(enum.Enum):
    ABORT = "abort"
    BLOCK_DIRTY_BITMAP_ADD = "block-dirty-bitmap-add"
    BLOCK_DIRTY_BITMAP_REMOVE = "block-dirty-bitmap-remove"
    BLOCK_DIRTY_BITMAP_CLEAR = "block-dirty-bitmap-clear"
    BLOCK_DIRTY_BITMAP_ENABLE = "block-dirty-bitmap-enable"
    BLOCK_DIRTY_BITMAP_DISABLE = "block-dirty-bitmap-disable"
    BLOCK_DIRTY_BITMAP_MERGE = "block-dirty-bitmap-merge"
    BLOCKDEV_BACKUP = "blockdev-backup"
    BLOCKDEV_SNAPSHOT = "blockdev-snapshot"
    BLOCKDEV_SNAPSHOT_INTERNAL_SYNC = "blockdev-snapshot-internal-sync"
    BLOCKDEV_SNAPSHOT_SYNC = "blockdev-snapshot-sync"
    DRIVE_BACKUP = "drive-backup"

@final
class XDbgBlockGraphNodeType(enum.Enum):
    BLOCK_BACKEND = "block-backend"
    BLOCK_JOB = "block-job"
    BLOCK_DRIVER = "block-driver"

@attrs.frozen(kw_only=True)
class Abort(QapiObject): ...

@attrs.frozen(kw_only=True)
class AbortWrapper(QapiObject):
    data: Abort

@attrs.frozen(kw_only=True)
class AcpiGenericInitiatorProperties(QapiObject):
    pci_dev: str
    node: int

@attrs.frozen(kw_only=True)
class AcpiGenericPortProperties(QapiObject):
    pci_bus: str
    node: int

@attrs.frozen(kw_only=True)
class AuthZListFileProperties(QapiObject):
    filename: str
    refresh: bool | None = None

@attrs.frozen(kw_only=True)
class AuthZListProperties(QapiObject):
    policy: QAuthZListPolicy | None = None
    rules: list[QAuthZListRule] | None = None

@attrs.frozen(kw_only=True)
class AuthZPAMProperties(QapiObject):
    service: str

@attrs.frozen(kw_only=True)
class AuthZSimpleProperties(QapiObject):
    identity: str

@attrs.frozen(kw_only=True)
class BackupCommon(QapiObject):
    job_id: str | None = None
    device: str
    sync: MirrorSyncMode
    speed: int | None = None
    bitmap: str | None = None
    bitmap_mode: BitmapSyncMode | None = None
    compress: bool | None = None
    on_source_error: BlockdevOnError | None = None
    on_target_error: BlockdevOnError | None = None
    auto_finalize: bool | None = None
    auto_dismiss: bool | None = None
    filter_node_name: str | None = None
    x_perf: BackupPerf | None = None
    on_cbw_error: OnCbwError | None = None
    discard_source: bool | None = None

@attrs.frozen(kw_only=True)
class BackupPerf(QapiObject):
    use_copy_range: bool | None = None
    max_workers: int | None = None
    max_chunk: int | None = None
    min_cluster_size: int | None = None

@attrs.frozen(kw_only=True)
class BlkdebugInjectErrorOptions(QapiObject):
    event: BlkdebugEvent
    state: int | None = None
    iotype: BlkdebugIOType | None = None
    errno: int | None = None
    sector: int | None = None
    once: bool | None = None
    immediately: bool | None = None
    delay_ns: int | None = None

@attrs.frozen(kw_only=True)
class BlkdebugSetStateOptions(QapiObject):
    event: BlkdebugEvent
    state: int | None = None
    new_state: int

@attrs.frozen(kw_only=True)
class BlockCommitArg(QapiObject):
    job_id: str | None = None
    device: str
    base_node: str | None = None
    base: str | None = None
    top_node: str | None = None
    top: str | None = None
    backing_file: str | None = None
    speed: int | None = None
    on_error: BlockdevOnError | None = None
    filter_node_name: str | None = None
    auto_finalize: bool | None = None
    auto_dismiss: bool | None = None
    backing_mask_protocol: bool | None = None

@attrs.frozen(kw_only=True)
class BlockDeviceInfo(QapiObject):
    file: str
    node_name: str | None = None
    ro: bool
    drv: str
    backing_file: str | None = None
    backing_file_depth: int
    encrypted: bool
    detect_zeroes: BlockdevDetectZeroesOptions
    bps: int
    bps_rd: int
    bps_wr: int
    iops: int
    iops_rd: int
    iops_wr: int
    image: ImageInfo
    bps_max: int | None = None
    bps_rd_max: int | None = None
    bps_wr_max: int | None = None
    iops_max: int | None = None
    iops_rd_max: int | None = None
    iops_wr_max: int | None = None
    bps_max_length: int | None = None
    bps_rd_max_length: int | None = None
    bps_wr_max_length: int | None = None
    iops_max_length: int | None = None
    iops_rd_max_length: int | None = None
    iops_wr_max_length: int | None = None
    iops_size: int | None = None
    group: str | None = None
    cache: BlockdevCacheInfo
    write_threshold: int
    dirty_bitmaps: list[BlockDirtyInfo] | None = None
    children: list[BlockdevChild] | None = None
    active: bool | None = None

@attrs.frozen(kw_only=True)
class BlockDeviceStats(QapiObject):
    rd_bytes: int
    wr_bytes: int
    unmap_bytes: int
    rd_operations: int
    wr_operations: int
    flush_operations: int
    unmap_operations: int
    rd_total_time_ns: int
    wr_total_time_ns: int
    flush_total_time_ns: int
    unmap_total_time_ns: int
    wr_highest_offset: int
    rd_merged: int
    wr_merged: int
    unmap_merged: int
    idle_time_ns: int | None = None
    failed_rd_operations: int
    failed_wr_operations: int
    failed_flush_operations: int
    failed_unmap_operations: int
    invalid_rd_operations: int
    invalid_wr_operations: int
    invalid_flush_operations: int
    invalid_unmap_operations: int
    account_invalid: bool
    account_failed: bool
    timed_stats: list[BlockDeviceTimedStats]
    rd_latency_histogram: BlockLatencyHistogramInfo | None = None
    wr_latency_histogram: BlockLatencyHistogramInfo | None = None
    flush_latency_histogram: BlockLatencyHistogramInfo | None = None
    zone_append_bytes: int | None = None
    zone_append_operations: int | None = None
    zone_append_total_time_ns: int | None = None
    zone_append_merged: int | None = None
    failed_zone_append_operations: int | None = None
    invalid_zone_append_operations: int | None = None
    zone_append_latency_histogram: BlockLatencyHistogramInfo | None = None

@attrs.frozen(kw_only=True)
class BlockDeviceTimedStats(QapiObject):
    interval_length: int
    min_rd_latency_ns: int
    min_wr_latency_ns: int
    min_flush_latency_ns: int
    max_rd_latency_ns: int
    max_wr_latency_ns: int
    max_flush_latency_ns: int
    avg_rd_latency_ns: int
    avg_wr_latency_ns: int
    avg_flush_latency_ns: int
    avg_rd_queue_depth: float
    avg_wr_queue_depth: float
    min_zone_append_latency_ns: int | None = None
    max_zone_append_latency_ns: int | None = None
    avg_zone_append_latency_ns: int | None = None
    avg_zone_append_queue_depth: float | None = None

@attrs.frozen(kw_only=True)
class BlockDirtyBitmap(QapiObject):
    node: str
    name: str

@attrs.frozen(kw_only=True)
class BlockDirtyBitmapAdd(QapiObject):
    node: str
    name: str
    granularity: int | None = None
    persistent: bool | None = None
    disabled: bool | None = None

@attrs.frozen(kw_only=True)
class BlockDirtyBitmapAddWrapper(QapiObject):
    data: BlockDirtyBitmapAdd

@attrs.frozen(kw_only=True)
class BlockDirtyBitmapMerge(QapiObject):
    node: str
    target: str
    bitmaps: list[BlockDirtyBitmapOrStr]

@attrs.frozen(kw_only=True)
class BlockDirtyBitmapMergeWrapper(QapiObject):
    data: BlockDirtyBitmapMerge

@attrs.frozen(kw_only=True)
class BlockDirtyBitmapSha256(QapiObject):
    sha256: str

@attrs.frozen(kw_only=True)
class BlockDirtyBitmapWrapper(QapiObject):
    data: BlockDirtyBitmap

@attrs.frozen(kw_only=True)
class BlockDirtyInfo(QapiObject):
    name: str | None = None
    count: int
    granularity: int
    recording: bool
    busy: bool
    persistent: bool
    inconsistent: bool | None = None

@attrs.frozen(kw_only=True)
class BlockExportDelArg(QapiObject):
    id: str
    mode: BlockExportRemoveMode | None = None

@attrs.frozen(kw_only=True)
class BlockExportDeletedEvent(QapiObject):
    id: str

@attrs.frozen(kw_only=True)
class BlockExportInfo(QapiObject):
    id: str
    type: BlockExportType
    node_name: str
    shutting_down: bool

@attrs.frozen(kw_only=True)
class BlockExportOptions(QapiObject):
    type: BlockExportType
    id: str
    fixed_iothread: bool | None = None
    iothread: BlockExportIothreads | None = None
    node_name: str
    writable: bool | None = None
    writethrough: bool | None = None
    allow_inactive: bool | None = None

@attrs.frozen(kw_only=True)
class BlockExportOptionsFuse(QapiObject):
    mountpoint: str
    growable: bool | None = None
    allow_other: FuseExportAllowOther | None = None

@attrs.frozen(kw_only=True)
class BlockExportOptionsNbd(BlockExportOptionsNbdBase):
    bitmaps: list[BlockDirtyBitmapOrStr] | None = None
    allocation_depth: bool | None = None

@attrs.frozen(kw_only=True)
class BlockExportOptionsNbdBase(QapiObject):
    name: str | None = None
    description: str | None = None

@attrs.frozen(kw_only=True)
class BlockExportOptionsVduseBlk(QapiObject):
    name: str
    num_queues: int | None = None
    queue_size: int | None = None
    logical_block_size: int | None = None
    serial: str | None = None

@attrs.frozen(kw_only=True)
class BlockExportOptionsVhostUserBlk(QapiObject):
    addr: SocketAddress
    logical_block_size: int | None = None
    num_queues: int | None = None

@attrs.frozen(kw_only=True)
class BlockIOThrottle(QapiObject):
    device: str | None = None
    id: str | None = None
    bps: int
    bps_rd: int
    bps_wr: int
    iops: int
    iops_rd: int
    iops_wr: int
    bps_max: int | None = None
    bps_rd_max: int | None = None
    bps_wr_max: int | None = None
    iops_max: int | None = None
    iops_rd_max: int | None = None
    iops_wr_max: int | None = None
    bps_max_length: int | None = None
    bps_rd_max_length: int | None = None
    bps_wr_max_length: int | None = None
    iops_max_length: int | None = None
    iops_rd_max_length: int | None = None
    iops_wr_max_length: int | None = None
    iops_size: int | None = None
    group: str | None = None

@attrs.frozen(kw_only=True)
class BlockImageCorruptedEvent(QapiObject):
    device: str
    node_name: str | None = None
    msg: str
    offset: int | None = None
    size: int | None = None
    fatal: bool

@attrs.frozen(kw_only=True)
class BlockInfo(QapiObject):
    device: str
    qdev: str | None = None
    type: str
    removable: bool
    locked: bool
    tray_open: bool | None = None
    io_status: BlockDeviceIoStatus | None = None
    inserted: BlockDeviceInfo | None = None

@attrs.frozen(kw_only=True)
class BlockIoErrorEvent(QapiObject):
    device: str
    node_name: str | None = None
    operation: IoOperationType
    action: BlockErrorAction
    nospace: bool | None = None
    reason: str
    qom_path: str | None = None

@attrs.frozen(kw_only=True)
class BlockJobCancelArg(QapiObject):
    device: str
    force: bool | None = None

@attrs.frozen(kw_only=True)
class BlockJobCancelledEvent(QapiObject):
    type: JobType
    device: str
    len: int
    offset: int
    speed: int

@attrs.frozen(kw_only=True)
class BlockJobChangeOptions(QapiObject):
    id: str
    type: JobType

@attrs.frozen(kw_only=True)
class BlockJobChangeOptionsMirror(QapiObject):
    copy_mode: MirrorCopyMode

@attrs.frozen(kw_only=True)
class BlockJobCompleteArg(QapiObject):
    device: str

@attrs.frozen(kw_only=True)
class BlockJobCompletedEvent(QapiObject):
    type: JobType
    device: str
    len: int
    offset: int
    speed: int
    error: str | None = None

@attrs.frozen(kw_only=True)
class BlockJobDismissArg(QapiObject):
    id: str

@attrs.frozen(kw_only=True)
class BlockJobErrorEvent(QapiObject):
    device: str
    operation: IoOperationType
    action: BlockErrorAction

@attrs.frozen(kw_only=True)
class BlockJobFinalizeArg(QapiObject):
    id: str

@attrs.frozen(kw_only=True)
class BlockJobInfo(QapiObject):
    type: JobType
    device: str
    len: int
    offset: int
    busy: bool
    paused: bool
    speed: int
    io_status: BlockDeviceIoStatus
    ready: bool
    status: JobStatus
    auto_finalize: bool
    auto_dismiss: bool
    error: str | None = None

@attrs.frozen(kw_only=True)
class BlockJobInfoMirror(QapiObject):
    actively_synced: bool

@attrs.frozen(kw_only=True)
class BlockJobPauseArg(QapiObject):
    device: str

@attrs.frozen(kw_only=True)
class BlockJobPendingEvent(QapiObject):
    type: JobType
    id: str

@attrs.frozen(kw_only=True)
class BlockJobReadyEvent(QapiObject):
    type: JobType
    device: str
    len: int
    offset: int
    speed: int

@attrs.frozen(kw_only=True)
class BlockJobResumeArg(QapiObject):
    device: str

@attrs.frozen(kw_only=True)
class BlockJobSetSpeedArg(QapiObject):
    device: str
    speed: int

@attrs.frozen(kw_only=True)
class BlockLatencyHistogramInfo(QapiObject):
    boundaries: list[int]
    bins: list[int]

@attrs.frozen(kw_only=True)
class BlockLimitsInfo(QapiObject):
    request_alignment: int
    max_discard: int | None = None
    discard_alignment: int | None = None
    max_write_zeroes: int | None = None
    write_zeroes_alignment: int | None = None
    opt_transfer: int | None = None
    max_transfer: int | None = None
    max_hw_transfer: int | None = None
    max_iov: int
    max_hw_iov: int | None = None
    min_mem_alignment: int
    opt_mem_alignment: int

@attrs.frozen(kw_only=True)
class BlockMeasureInfo(QapiObject):
    required: int
    fully_allocated: int
    bitmaps: int | None = None

@attrs.frozen(kw_only=True)
class BlockNodeInfo(QapiObject):
    filename: str
    format: str
    dirty_flag: bool | None = None
    actual_size: int | None = None
    virtual_size: int
    cluster_size: int | None = None
    encrypted: bool | None = None
    compressed: bool | None = None
    backing_filename: str | None = None
    full_backing_filename: str | None = None
    backing_filename_format: str | None = None
    snapshots: list[SnapshotInfo] | None = None
    limits: BlockLimitsInfo | None = None
    format_specific: ImageInfoSpecific | None = None

@attrs.frozen(kw_only=True)
class BlockResizeArg(QapiObject):
    device: str | None = None
    node_name: str | None = None
    size: int

@attrs.frozen(kw_only=True)
class BlockSetWriteThresholdArg(QapiObject):
    node_name: str
    write_threshold: int

@attrs.frozen(kw_only=True)
class BlockStats(QapiObject):
    device: str | None = None
    node_name: str | None = None
    qdev: str | None = None
    stats: BlockDeviceStats
    driver_specific: BlockStatsSpecific | None = None
    parent: BlockStats | None = None
    backing: BlockStats | None = None

@attrs.frozen(kw_only=True)
class BlockStatsSpecific(QapiObject):
    driver: BlockdevDriver

@attrs.frozen(kw_only=True)
class BlockStatsSpecificFile(QapiObject):
    discard_nb_ok: int
    discard_nb_failed: int
    discard_bytes_ok: int

@attrs.frozen(kw_only=True)
class BlockStatsSpecificNvme(QapiObject):
    completion_errors: int
    aligned_accesses: int
    unaligned_accesses: int

@attrs.frozen(kw_only=True)
class BlockStreamArg(QapiObject):
    job_id: str | None = None
    device: str
    base: str | None = None
    base_node: str | None = None
    backing_file: str | None = None
    bottom: str | None = None
    speed: int | None = None
    on_error: BlockdevOnError | None = None
    filter_node_name: str | None = None
    auto_finalize: bool | None = None
    auto_dismiss: bool | None = None
    backing_mask_protocol: bool | None = None

@attrs.frozen(kw_only=True)
class BlockWriteThresholdEvent(QapiObject):
    node_name: str
    amount_exceeded: int
    write_threshold: int

@attrs.frozen(kw_only=True)
class BlockdevAmendOptions(QapiObject):
    driver: BlockdevDriver

@attrs.frozen(kw_only=True)
class BlockdevAmendOptionsLUKS(QCryptoBlockAmendOptionsLUKS): ...

@attrs.frozen(kw_only=True)
class BlockdevAmendOptionsQcow2(QapiObject):
    encrypt: QCryptoBlockAmendOptions | None = None

@attrs.frozen(kw_only=True)
class BlockdevBackup(BackupCommon):
    target: str

@attrs.frozen(kw_only=True)
class BlockdevBackupWrapper(QapiObject):
    data: BlockdevBackup

@attrs.frozen(kw_only=True)
class BlockdevCacheInfo(QapiObject):
    writeback: bool
    direct: bool
    no_flush: bool

@attrs.frozen(kw_only=True)
class BlockdevCacheOptions(QapiObject):
    direct: bool | None = None
    no_flush: bool | None = None

@attrs.frozen(kw_only=True)
class BlockdevChild(QapiObject):
    child: str
    node_name: str

@attrs.frozen(kw_only=True)
class BlockdevCreateArg(QapiObject):
    job_id: str
    options: BlockdevCreateOptions

@attrs.frozen(kw_only=True)
class BlockdevCreateOptions(QapiObject):
    driver: BlockdevDriver

@attrs.frozen(kw_only=True)
class BlockdevCreateOptionsFile(QapiObject):
    filename: str
    size: int
    preallocation: PreallocMode | None = None
    nocow: bool | None = None
    extent_size_hint: int | None = None

@attrs.frozen(kw_only=True)
class BlockdevCreateOptionsGluster(QapiObject):
    location: BlockdevOptionsGluster
    size: int
    preallocation: PreallocMode | None = None

@attrs.frozen(kw_only=True)
class BlockdevCreateOptionsLUKS(QCryptoBlockCreateOptionsLUKS):
    file: BlockdevRef | None = None
    size: int
    preallocation: PreallocMode | None = None
    header: BlockdevRef | None = None

@attrs.frozen(kw_only=True)
class BlockdevCreateOptionsNfs(QapiObject):
    location: BlockdevOptionsNfs
    size: int

@attrs.frozen(kw_only=True)
class BlockdevCreateOptionsParallels(QapiObject):
    file: BlockdevRef
    size: int
    cluster_size: int | None = None

@attrs.frozen(kw_only=True)
class BlockdevCreateOptionsQcow(QapiObject):
    file: BlockdevRef
    size: int
    backing_file: str | None = None
    encrypt: QCryptoBlockCreateOptions | None = None

@attrs.frozen(kw_only=True)
class BlockdevCreateOptionsQcow2(QapiObject):
    file: BlockdevRef
    data_file: BlockdevRef | None = None
    data_file_raw: bool | None = None
    extended_l2: bool | None = None
    size: int
    version: BlockdevQcow2Version | None = None
    backing_file: str | None = None
    backing_fmt: BlockdevDriver | None = None
    encrypt: QCryptoBlockCreateOptions | None = None
    cluster_size: int | None = None
    preallocation: PreallocMode | None = None
    lazy_refcounts: bool | None = None
    refcount_bits: int | None = None
    compression_type: Qcow2CompressionType | None = None

@attrs.frozen(kw_only=True)
class BlockdevCreateOptionsQed(QapiObject):
    file: BlockdevRef
    size: int
    backing_file: str | None = None
    backing_fmt: BlockdevDriver | None = None
    cluster_size: int | None = None
    table_size: int | None = None

@attrs.frozen(kw_only=True)
class BlockdevCreateOptionsRbd(QapiObject):
    location: BlockdevOptionsRbd
    size: int
    cluster_size: int | None = None
    encrypt: RbdEncryptionCreateOptions | None = None

@attrs.frozen(kw_only=True)
class BlockdevCreateOptionsSsh(QapiObject):
    location: BlockdevOptionsSsh
    size: int

@attrs.frozen(kw_only=True)
class BlockdevCreateOptionsVdi(QapiObject):
    file: BlockdevRef
    size: int
    preallocation: PreallocMode | None = None

@attrs.frozen(kw_only=True)
class BlockdevCreateOptionsVhdx(QapiObject):
    file: BlockdevRef
    size: int
    log_size: int | None = None
    block_size: int | None = None
    subformat: BlockdevVhdxSubformat | None = None
    block_state_zero: bool | None = None

@attrs.frozen(kw_only=True)
class BlockdevCreateOptionsVmdk(QapiObject):
    file: BlockdevRef
    size: int
    extents: list[BlockdevRef] | None = None
    subformat: BlockdevVmdkSubformat | None = None
    backing_file: str | None = None
    adapter_type: BlockdevVmdkAdapterType | None = None
    hwversion: str | None = None
    toolsversion: str | None = None
    zeroed_grain: bool | None = None

@attrs.frozen(kw_only=True)
class BlockdevCreateOptionsVpc(QapiObject):
    file: BlockdevRef
    size: int
    subformat: BlockdevVpcSubformat | None = None
    force_size: bool | None = None

@attrs.frozen(kw_only=True)
class BlockdevDelArg(QapiObject):
    node_name: str

@attrs.frozen(kw_only=True)
class BlockdevMirrorArg(QapiObject):
    job_id: str | None = None
    device: str
    target: str
    replaces: str | None = None
    sync: MirrorSyncMode
    speed: int | None = None
    granularity: int | None = None
    buf_size: int | None = None
    on_source_error: BlockdevOnError | None = None
    on_target_error: BlockdevOnError | None = None
    filter_node_name: str | None = None
    copy_mode: MirrorCopyMode | None = None
    auto_finalize: bool | None = None
    auto_dismiss: bool | None = None
    target_is_zero: bool | None = None

@attrs.frozen(kw_only=True)
class BlockdevOptions(QapiObject):
    driver: BlockdevDriver
    node_name: str | None = None
    discard: BlockdevDiscardOptions | None = None
    cache: BlockdevCacheOptions | None = None
    read_only: bool | None = None
    auto_read_only: bool | None = None
    force_share: bool | None = None
    detect_zeroes: BlockdevDetectZeroesOptions | None = None
    active: bool | None = None

@attrs.frozen(kw_only=True)
class BlockdevOptionsBlkdebug(QapiObject):
    image: BlockdevRef
    config: str | None = None
    align: int | None = None
    max_transfer: int | None = None
    opt_write_zero: int | None = None
    max_write_zero: int | None = None
    opt_discard: int | None = None
    max_discard: int | None = None
    inject_error: list[BlkdebugInjectErrorOptions] | None = None
    set_state: list[BlkdebugSetStateOptions] | None = None
    take_child_perms: list[BlockPermission] | None = None
    unshare_child_perms: list[BlockPermission] | None = None

@attrs.frozen(kw_only=True)
class BlockdevOptionsBlklogwrites(QapiObject):
    file: BlockdevRef
    log: BlockdevRef
    log_sector_size: int | None = None
    log_append: bool | None = None
    log_super_update_interval: int | None = None

@attrs.frozen(kw_only=True)
class BlockdevOptionsBlkreplay(QapiObject):
    image: BlockdevRef

@attrs.frozen(kw_only=True)
class BlockdevOptionsBlkverify(QapiObject):
    test: BlockdevRef
    raw: BlockdevRef

@attrs.frozen(kw_only=True)
class BlockdevOptionsCbw(BlockdevOptionsGenericFormat):
    target: BlockdevRef
    bitmap: BlockDirtyBitmap | None = None
    on_cbw_error: OnCbwError | None = None
    cbw_timeout: int | None = None
    min_cluster_size: int | None = None

@attrs.frozen(kw_only=True)
class BlockdevOptionsCor(BlockdevOptionsGenericFormat):
    bottom: str | None = None

@attrs.frozen(kw_only=True)
class BlockdevOptionsCurlBase(QapiObject):
    url: str
    readahead: int | None = None
    timeout: int | None = None
    username: str | None = None
    password_secret: str | None = None
    proxy_username: str | None = None
    proxy_password_secret: str | None = None

@attrs.frozen(kw_only=True)
class BlockdevOptionsCurlFtp(BlockdevOptionsCurlBase): ...

@attrs.frozen(kw_only=True)
class BlockdevOptionsCurlFtps(BlockdevOptionsCurlBase):
    sslverify: bool | None = None

@attrs.frozen(kw_only=True)
class BlockdevOptionsCurlHttp(BlockdevOptionsCurlBase):
    cookie: str | None = None
    cookie_secret: str | None = None
    force_range: bool | None = None

@attrs.frozen(kw_only=True)
class BlockdevOptionsCurlHttps(BlockdevOptionsCurlHttp):
    sslverify: bool | None = None

@attrs.frozen(kw_only=True)
class BlockdevOptionsFile(QapiObject):
    filename: str
    pr_manager: str | None = None
    locking: OnOffAuto | None = None
    aio: BlockdevAioOptions | None = None
    aio_max_batch: int | None = None
    drop_cache: bool | None = None
    x_check_cache_dropped: bool | None = None

@attrs.frozen(kw_only=True)
class BlockdevOptionsGenericCOWFormat(BlockdevOptionsGenericFormat):
    backing: BlockdevRefOrNull | None = None

@attrs.frozen(kw_only=True)
class BlockdevOptionsGenericFormat(QapiObject):
    file: BlockdevRef

@attrs.frozen(kw_only=True)
class BlockdevOptionsGluster(QapiObject):
    volume: str
    path: str
    server: list[SocketAddress]
    debug: int | None = None
    logfile: str | None = None

@attrs.frozen(kw_only=True)
class BlockdevOptionsIscsi(QapiObject):
    transport: IscsiTransport
    portal: str
    target: str
    lun: int | None = None
    user: str | None = None
    password_secret: str | None = None
    initiator_name: str | None = None
    header_digest: IscsiHeaderDigest | None = None
    timeout: int | None = None

@attrs.frozen(kw_only=True)
class BlockdevOptionsLUKS(BlockdevOptionsGenericFormat):
    key_secret: str | None = None
    header: BlockdevRef | None = None

@attrs.frozen(kw_only=True)
class BlockdevOptionsNVMe(QapiObject):
    device: str
    namespace: int

@attrs.frozen(kw_only=True)
class BlockdevOptionsNbd(QapiObject):
    server: SocketAddress
    export: str | None = None
    tls_creds: str | None = None
    tls_hostname: str | None = None
    x_dirty_bitmap: str | None = None
    reconnect_delay: int | None = None
    open_timeout: int | None = None

@attrs.frozen(kw_only=True)
class BlockdevOptionsNfs(QapiObject):
    server: NFSServer
    path: str
    user: int | None = None
    group: int | None = None
    tcp_syn_count: int | None = None
    readahead_size: int | None = None
    page_cache_size: int | None = None
    debug: int | None = None

@attrs.frozen(kw_only=True)
class BlockdevOptionsNull(QapiObject):
    size: int | None = None
    latency_ns: int | None = None
    read_zeroes: bool | None = None

@attrs.frozen(kw_only=True)
class BlockdevOptionsPreallocate(BlockdevOptionsGenericFormat):
    prealloc_align: int | None = None
    prealloc_size: int | None = None

@attrs.frozen(kw_only=True)
class BlockdevOptionsQcow(BlockdevOptionsGenericCOWFormat):
    encrypt: BlockdevQcowEncryption | None = None

@attrs.frozen(kw_only=True)
class BlockdevOptionsQcow2(BlockdevOptionsGenericCOWFormat):
    lazy_refcounts: bool | None = None
    pass_discard_request: bool | None = None
    pass_discard_snapshot: bool | None = None
    pass_discard_other: bool | None = None
    overlap_check: Qcow2OverlapChecks | None = None
    cache_size: int | None = None
    l2_cache_size: int | None = None
    l2_cache_entry_size: int | None = None
    refcount_cache_size: int | None = None
    cache_clean_interval: int | None = None
    encrypt: BlockdevQcow2Encryption | None = None
    data_file: BlockdevRef | None = None
    discard_no_unref: bool | None = None

@attrs.frozen(kw_only=True)
class BlockdevOptionsQuorum(QapiObject):
    blkverify: bool | None = None
    children: list[BlockdevRef]
    vote_threshold: int
    rewrite_corrupted: bool | None = None
    read_pattern: QuorumReadPattern | None = None

@attrs.frozen(kw_only=True)
class BlockdevOptionsRaw(BlockdevOptionsGenericFormat):
    offset: int | None = None
    size: int | None = None

@attrs.frozen(kw_only=True)
class BlockdevOptionsRbd(QapiObject):
    pool: str
    namespace: str | None = None
    image: str
    conf: str | None = None
    snapshot: str | None = None
    encrypt: RbdEncryptionOptions | None = None
    user: str | None = None
    auth_client_required: list[RbdAuthMode] | None = None
    key_secret: str | None = None
    server: list[InetSocketAddressBase] | None = None

@attrs.frozen(kw_only=True)
class BlockdevOptionsReplication(BlockdevOptionsGenericFormat):
    mode: ReplicationMode
    top_id: str | None = None

@attrs.frozen(kw_only=True)
class BlockdevOptionsSsh(QapiObject):
    server: InetSocketAddress
    path: str
    user: str | None = None
    host_key_check: SshHostKeyCheck | None = None

@attrs.frozen(kw_only=True)
class BlockdevOptionsThrottle(QapiObject):
    throttle_group: str
    file: BlockdevRef

@attrs.frozen(kw_only=True)
class BlockdevOptionsVVFAT(QapiObject):
    dir: str
    fat_type: int | None = None
    floppy: bool | None = None
    label: str | None = None
    rw: bool | None = None

@attrs.frozen(kw_only=True)
class BlockdevQcow2Encryption(QapiObject):
    format: BlockdevQcow2EncryptionFormat

@attrs.frozen(kw_only=True)
class BlockdevQcowEncryption(QapiObject):
    format: BlockdevQcowEncryptionFormat

@attrs.frozen(kw_only=True)
class BlockdevReopenArg(QapiObject):
    options: list[BlockdevOptions]

@attrs.frozen(kw_only=True)
class BlockdevSetActiveArg(QapiObject):
    node_name: str | None = None
    active: bool

@attrs.frozen(kw_only=True)
class BlockdevSnapshot(QapiObject):
    node: str
    overlay: str

@attrs.frozen(kw_only=True)
class BlockdevSnapshotDeleteInternalSyncArg(QapiObject):
    device: str
    id: str | None = None
    name: str | None = None

@attrs.frozen(kw_only=True)
class BlockdevSnapshotInternal(QapiObject):
    device: str
    name: str

@attrs.frozen(kw_only=True)
class BlockdevSnapshotInternalWrapper(QapiObject):
    data: BlockdevSnapshotInternal

@attrs.frozen(kw_only=True)
class BlockdevSnapshotSync(QapiObject):
    device: str | None = None
    node_name: str | None = None
    snapshot_file: str
    snapshot_node_name: str | None = None
    format: str | None = None
    mode: NewImageMode | None = None

@attrs.frozen(kw_only=True)
class BlockdevSnapshotSyncWrapper(QapiObject):
    data: BlockdevSnapshotSync

@attrs.frozen(kw_only=True)
class BlockdevSnapshotWrapper(QapiObject):
    data: BlockdevSnapshot

@attrs.frozen(kw_only=True)
class CanHostSocketcanProperties(QapiObject):
    if_: str
    canbus: str

@attrs.frozen(kw_only=True)
class ChangeBackingFileArg(QapiObject):
    device: str
    image_node_name: str
    backing_file: str

@attrs.frozen(kw_only=True)
class ChardevAddArg(QapiObject):
    id: str
    backend: ChardevBackend

@attrs.frozen(kw_only=True)
class ChardevBackend(QapiObject):
    type: ChardevBackendKind

@attrs.frozen(kw_only=True)
class ChardevBackendInfo(QapiObject):
    name: str

@attrs.frozen(kw_only=True)
class ChardevChangeArg(QapiObject):
    id: str
    backend: ChardevBackend

@attrs.frozen(kw_only=True)
class ChardevCommon(QapiObject):
    logfile: str | None = None
    logappend: bool | None = None
    logtimestamp: bool | None = None

@attrs.frozen(kw_only=True)
class ChardevCommonWrapper(QapiObject):
    data: ChardevCommon

@attrs.frozen(kw_only=True)
class ChardevDBus(ChardevCommon):
    name: str
    encoding: ChardevVCEncoding | None = None

@attrs.frozen(kw_only=True)
class ChardevDBusWrapper(QapiObject):
    data: ChardevDBus

@attrs.frozen(kw_only=True)
class ChardevFile(ChardevCommon):
    in_: str | None = None
    out: str
    append: bool | None = None

@attrs.frozen(kw_only=True)
class ChardevFileWrapper(QapiObject):
    data: ChardevFile

@attrs.frozen(kw_only=True)
class ChardevHostdev(ChardevCommon):
    device: str

@attrs.frozen(kw_only=True)
class ChardevHostdevWrapper(QapiObject):
    data: ChardevHostdev

@attrs.frozen(kw_only=True)
class ChardevHub(ChardevCommon):
    chardevs: list[str]

@attrs.frozen(kw_only=True)
class ChardevHubWrapper(QapiObject):
    data: ChardevHub

@attrs.frozen(kw_only=True)
class ChardevInfo(QapiObject):
    label: str
    filename: str
    frontend_open: bool

@attrs.frozen(kw_only=True)
class ChardevMux(ChardevCommon):
    chardev: str

@attrs.frozen(kw_only=True)
class ChardevMuxWrapper(QapiObject):
    data: ChardevMux

@attrs.frozen(kw_only=True)
class ChardevPty(ChardevCommon):
    path: str | None = None

@attrs.frozen(kw_only=True)
class ChardevPtyWrapper(QapiObject):
    data: ChardevPty

@attrs.frozen(kw_only=True)
class ChardevQemuVDAgent(ChardevCommon):
    mouse: bool | None = None
    clipboard: bool | None = None

@attrs.frozen(kw_only=True)
class ChardevQemuVDAgentWrapper(QapiObject):
    data: ChardevQemuVDAgent

@attrs.frozen(kw_only=True)
class ChardevRemoveArg(QapiObject):
    id: str

@attrs.frozen(kw_only=True)
class ChardevReturn(QapiObject):
    pty: str | None = None

@attrs.frozen(kw_only=True)
class ChardevRingbuf(ChardevCommon):
    size: int | None = None

@attrs.frozen(kw_only=True)
class ChardevRingbufWrapper(QapiObject):
    data: ChardevRingbuf

@attrs.frozen(kw_only=True)
class ChardevSendBreakArg(QapiObject):
    id: str

@attrs.frozen(kw_only=True)
class ChardevSocket(ChardevCommon):
    addr: SocketAddressLegacy
    tls_creds: str | None = None
    tls_authz: str | None = None
    server: bool | None = None
    wait: bool | None = None
    nodelay: bool | None = None
    telnet: bool | None = None
    tn3270: bool | None = None
    websocket: bool | None = None
    reconnect: int | None = None
    reconnect_ms: int | None = None

@attrs.frozen(kw_only=True)
class ChardevSocketWrapper(QapiObject):
    data: ChardevSocket

@attrs.frozen(kw_only=True)
class ChardevSpiceChannel(ChardevCommon):
    type: str

@attrs.frozen(kw_only=True)
class ChardevSpiceChannelWrapper(QapiObject):
    data: ChardevSpiceChannel

@attrs.frozen(kw_only=True)
class ChardevSpicePort(ChardevCommon):
    fqdn: str

@attrs.frozen(kw_only=True)
class ChardevSpicePortWrapper(QapiObject):
    data: ChardevSpicePort

@attrs.frozen(kw_only=True)
class ChardevStdio(ChardevCommon):
    signal: bool | None = None

@attrs.frozen(kw_only=True)
class ChardevStdioWrapper(QapiObject):
    data: ChardevStdio

@attrs.frozen(kw_only=True)
class ChardevUdp(ChardevCommon):
    remote: SocketAddressLegacy
    local: SocketAddressLegacy | None = None

@attrs.frozen(kw_only=True)
class ChardevUdpWrapper(QapiObject):
    data: ChardevUdp

@attrs.frozen(kw_only=True)
class ChardevVC(ChardevCommon):
    width: int | None = None
    height: int | None = None
    cols: int | None = None
    rows: int | None = None
    encoding: ChardevVCEncoding | None = None

@attrs.frozen(kw_only=True)
class ChardevVCWrapper(QapiObject):
    data: ChardevVC

@attrs.frozen(kw_only=True)
class ColoCompareProperties(QapiObject):
    primary_in: str
    secondary_in: str
    outdev: str
    iothread: str
    notify_dev: str | None = None
    compare_timeout: int | None = None
    expired_scan_cycle: int | None = None
    max_queue_size: int | None = None
    vnet_hdr_support: bool | None = None

@attrs.frozen(kw_only=True)
class CommandInfo(QapiObject):
    name: str

@attrs.frozen(kw_only=True)
class CryptodevBackendProperties(QapiObject):
    queues: int | None = None
    throttle_bps: int | None = None
    throttle_ops: int | None = None

@attrs.frozen(kw_only=True)
class CryptodevVhostUserProperties(CryptodevBackendProperties):
    chardev: str

@attrs.frozen(kw_only=True)
class DBusVMStateProperties(QapiObject):
    addr: str
    id_list: str | None = None

@attrs.frozen(kw_only=True)
class DriveBackup(BackupCommon):
    target: str
    format: str | None = None
    mode: NewImageMode | None = None

@attrs.frozen(kw_only=True)
class DriveBackupWrapper(QapiObject):
    data: DriveBackup

@attrs.frozen(kw_only=True)
class DriveMirror(QapiObject):
    job_id: str | None = None
    device: str
    target: str
    format: str | None = None
    node_name: str | None = None
    replaces: str | None = None
    sync: MirrorSyncMode
    mode: NewImageMode | None = None
    speed: int | None = None
    granularity: int | None = None
    buf_size: int | None = None
    on_source_error: BlockdevOnError | None = None
    on_target_error: BlockdevOnError | None = None
    unmap: bool | None = None
    copy_mode: MirrorCopyMode | None = None
    auto_finalize: bool | None = None
    auto_dismiss: bool | None = None

@attrs.frozen(kw_only=True)
class EventLoopBaseProperties(QapiObject):
    aio_max_batch: int | None = None
    thread_pool_min: int | None = None
    thread_pool_max: int | None = None

@attrs.frozen(kw_only=True)
class FdSocketAddress(QapiObject):
    str: builtins.str

@attrs.frozen(kw_only=True)
class FdSocketAddressWrapper(QapiObject):
    data: FdSocketAddress

@attrs.frozen(kw_only=True)
class FilterBufferProperties(NetfilterProperties):
    interval: int

@attrs.frozen(kw_only=True)
class FilterDumpProperties(NetfilterProperties):
    file: str
    maxlen: int | None = None

@attrs.frozen(kw_only=True)
class FilterMirrorProperties(NetfilterProperties):
    outdev: str
    vnet_hdr_support: bool | None = None

@attrs.frozen(kw_only=True)
class FilterRedirectorProperties(NetfilterProperties):
    indev: str | None = None
    outdev: str | None = None
    vnet_hdr_support: bool | None = None

@attrs.frozen(kw_only=True)
class FilterRewriterProperties(NetfilterProperties):
    vnet_hdr_support: bool | None = None

@attrs.frozen(kw_only=True)
class HumanReadableText(QapiObject):
    human_readable_text: str

@attrs.frozen(kw_only=True)
class IOMMUFDProperties(QapiObject):
    fd: str | None = None

@attrs.frozen(kw_only=True)
class ImageCheck(QapiObject):
    filename: str
    format: str
    check_errors: int
    image_end_offset: int | None = None
    corruptions: int | None = None
    leaks: int | None = None
    corruptions_fixed: int | None = None
    leaks_fixed: int | None = None
    total_clusters: int | None = None
    allocated_clusters: int | None = None
    fragmented_clusters: int | None = None
    compressed_clusters: int | None = None

@attrs.frozen(kw_only=True)
class ImageInfo(BlockNodeInfo):
    backing_image: ImageInfo | None = None

@attrs.frozen(kw_only=True)
class ImageInfoSpecific(QapiObject):
    type: ImageInfoSpecificKind

@attrs.frozen(kw_only=True)
class ImageInfoSpecificFile(QapiObject):
    extent_size_hint: int | None = None

@attrs.frozen(kw_only=True)
class ImageInfoSpecificFileWrapper(QapiObject):
    data: ImageInfoSpecificFile

@attrs.frozen(kw_only=True)
class ImageInfoSpecificLUKSWrapper(QapiObject):
    data: QCryptoBlockInfoLUKS

@attrs.frozen(kw_only=True)
class ImageInfoSpecificQCow2(QapiObject):
    compat: str
    data_file: str | None = None
    data_file_raw: bool | None = None
    extended_l2: bool | None = None
    lazy_refcounts: bool | None = None
    corrupt: bool | None = None
    refcount_bits: int
    encrypt: ImageInfoSpecificQCow2Encryption | None = None
    bitmaps: list[Qcow2BitmapInfo] | None = None
    compression_type: Qcow2CompressionType

@attrs.frozen(kw_only=True)
class ImageInfoSpecificQCow2Encryption(ImageInfoSpecificQCow2EncryptionBase): ...

@attrs.frozen(kw_only=True)
class ImageInfoSpecificQCow2EncryptionBase(QapiObject):
    format: BlockdevQcow2EncryptionFormat

@attrs.frozen(kw_only=True)
class ImageInfoSpecificQCow2Wrapper(QapiObject):
    data: ImageInfoSpecificQCow2

@attrs.frozen(kw_only=True)
class ImageInfoSpecificRbd(QapiObject):
    encryption_format: RbdImageEncryptionFormat | None = None

@attrs.frozen(kw_only=True)
class ImageInfoSpecificRbdWrapper(QapiObject):
    data: ImageInfoSpecificRbd

@attrs.frozen(kw_only=True)
class ImageInfoSpecificVmdk(QapiObject):
    create_type: str
    cid: int
    parent_cid: int
    extents: list[VmdkExtentInfo]

@attrs.frozen(kw_only=True)
class ImageInfoSpecificVmdkWrapper(QapiObject):
    data: ImageInfoSpecificVmdk

@attrs.frozen(kw_only=True)
class InetSocketAddress(InetSocketAddressBase):
    numeric: bool | None = None
    to: int | None = None
    ipv4: bool | None = None
    ipv6: bool | None = None
    keep_alive: bool | None = None
    mptcp: bool | None = None
    keep_alive_count: int | None = None
    keep_alive_idle: int | None = None
    keep_alive_interval: int | None = None

@attrs.frozen(kw_only=True)
class InetSocketAddressBase(QapiObject):
    host: str
    port: str

@attrs.frozen(kw_only=True)
class InetSocketAddressWrapper(QapiObject):
    data: InetSocketAddress

@attrs.frozen(kw_only=True)
class InputBarrierProperties(QapiObject):
    name: str
    server: str | None = None
    port: str | None = None
    x_origin: str | None = None
    y_origin: str | None = None
    width: str | None = None
    height: str | None = None

@attrs.frozen(kw_only=True)
class InputLinuxProperties(QapiObject):
    evdev: str
    grab_all: bool | None = None
    repeat: bool | None = None
    grab_toggle: GrabToggleKeys | None = None

@attrs.frozen(kw_only=True)
class IothreadProperties(EventLoopBaseProperties):
    poll_max_ns: int | None = None
    poll_grow: int | None = None
    poll_shrink: int | None = None
    poll_weight: int | None = None

@attrs.frozen(kw_only=True)
class JobCancelArg(QapiObject):
    id: str

@attrs.frozen(kw_only=True)
class JobCompleteArg(QapiObject):
    id: str

@attrs.frozen(kw_only=True)
class JobDismissArg(QapiObject):
    id: str

@attrs.frozen(kw_only=True)
class JobFinalizeArg(QapiObject):
    id: str

@attrs.frozen(kw_only=True)
class JobInfo(QapiObject):
    id: str
    type: JobType
    status: JobStatus
    current_progress: int
    total_progress: int
    error: str | None = None

@attrs.frozen(kw_only=True)
class JobPauseArg(QapiObject):
    id: str

@attrs.frozen(kw_only=True)
class JobResumeArg(QapiObject):
    id: str

@attrs.frozen(kw_only=True)
class JobStatusChangeEvent(QapiObject):
    id: str
    status: JobStatus

@attrs.frozen(kw_only=True)
class MainLoopProperties(EventLoopBaseProperties): ...

@attrs.frozen(kw_only=True)
class MapEntry(QapiObject):
    start: int
    length: int
    data: bool
    zero: bool
    depth: int
    present: bool
    offset: int | None = None
    filename: str | None = None

@attrs.frozen(kw_only=True)
class MemoryBackendEpcProperties(MemoryBackendProperties): ...

@attrs.frozen(kw_only=True)
class MemoryBackendFileProperties(MemoryBackendProperties):
    align: int | None = None
    discard_data: bool | None = None
    mem_path: str
    pmem: bool | None = None
    readonly: bool | None = None
    offset: int | None = None
    rom: OnOffAuto | None = None

@attrs.frozen(kw_only=True)
class MemoryBackendMemfdProperties(MemoryBackendProperties):
    hugetlb: bool | None = None
    hugetlbsize: int | None = None
    seal: bool | None = None

@attrs.frozen(kw_only=True)
class MemoryBackendProperties(QapiObject):
    dump: bool | None = None
    host_nodes: list[int] | None = None
    merge: bool | None = None
    policy: HostMemPolicy | None = None
    prealloc: bool | None = None
    prealloc_threads: int | None = None
    prealloc_context: str | None = None
    share: bool | None = None
    reserve: bool | None = None
    size: int
    x_use_canonical_path_for_ramblock_id: bool | None = None

@attrs.frozen(kw_only=True)
class MemoryBackendShmProperties(MemoryBackendProperties): ...

@attrs.frozen(kw_only=True)
class MonitorHMPProperties(MonitorProperties):
    readline: bool | None = None

@attrs.frozen(kw_only=True)
class MonitorOptions(QapiObject):
    id: str | None = None
    mode: MonitorMode | None = None
    pretty: bool | None = None
    chardev: str

@attrs.frozen(kw_only=True)
class MonitorProperties(QapiObject):
    chardev: str

@attrs.frozen(kw_only=True)
class MonitorQMPProperties(MonitorProperties):
    pretty: bool | None = None
    close_action: MonitorQMPCloseAction | None = None

@attrs.frozen(kw_only=True)
class NFSServer(QapiObject):
    type: NFSTransport
    host: str

@attrs.frozen(kw_only=True)
class NbdServerAddOptions(BlockExportOptionsNbdBase):
    device: str
    writable: bool | None = None
    bitmap: str | None = None

@attrs.frozen(kw_only=True)
class NbdServerOptions(QapiObject):
    addr: SocketAddress
    tls_creds: str | None = None
    tls_authz: str | None = None
    max_connections: int | None = None
    handshake_max_seconds: int | None = None

@attrs.frozen(kw_only=True)
class NbdServerRemoveArg(QapiObject):
    name: str
    mode: BlockExportRemoveMode | None = None

@attrs.frozen(kw_only=True)
class NbdServerStartArg(QapiObject):
    addr: SocketAddressLegacy
    tls_creds: str | None = None
    tls_authz: str | None = None
    max_connections: int | None = None
    handshake_max_seconds: int | None = None

@attrs.frozen(kw_only=True)
class NetfilterProperties(QapiObject):
    netdev: str
    queue: NetFilterDirection | None = None
    status: str | None = None
    position: str | None = None
    insert: NetfilterInsert | None = None

@attrs.frozen(kw_only=True)
class ObjectDelArg(QapiObject):
    id: str

@attrs.frozen(kw_only=True)
class ObjectOptions(QapiObject):
    qom_type: ObjectType
    id: str

@attrs.frozen(kw_only=True)
class ObjectPropertiesValues(QapiObject):
    properties: list[ObjectPropertyValue]

@attrs.frozen(kw_only=True)
class ObjectPropertyInfo(QapiObject):
    name: str
    type: str
    description: str | None = None
    default_value: object | None = None

@attrs.frozen(kw_only=True)
class ObjectPropertyValue(QapiObject):
    name: str
    type: str
    value: object | None = None

@attrs.frozen(kw_only=True)
class ObjectTypeInfo(QapiObject):
    name: str
    abstract: bool | None = None
    parent: str | None = None

@attrs.frozen(kw_only=True)
class PrManagerHelperProperties(QapiObject):
    path: str

@attrs.frozen(kw_only=True)
class QAuthZListRule(QapiObject):
    match: str
    policy: QAuthZListPolicy
    format: QAuthZListFormat | None = None

@attrs.frozen(kw_only=True)
class QCryptoAkCipherOptions(QapiObject):
    alg: QCryptoAkCipherAlgorithm

@attrs.frozen(kw_only=True)
class QCryptoAkCipherOptionsRSA(QapiObject):
    hash_alg: QCryptoHashAlgorithm
    padding_alg: QCryptoRSAPaddingAlgorithm

@attrs.frozen(kw_only=True)
class QCryptoBlockAmendOptions(QCryptoBlockOptionsBase): ...

@attrs.frozen(kw_only=True)
class QCryptoBlockAmendOptionsLUKS(QapiObject):
    state: QCryptoBlockLUKSKeyslotState
    new_secret: str | None = None
    old_secret: str | None = None
    keyslot: int | None = None
    iter_time: int | None = None
    secret: str | None = None

@attrs.frozen(kw_only=True)
class QCryptoBlockCreateOptions(QCryptoBlockOptionsBase): ...

@attrs.frozen(kw_only=True)
class QCryptoBlockCreateOptionsLUKS(QCryptoBlockOptionsLUKS):
    cipher_alg: QCryptoCipherAlgo | None = None
    cipher_mode: QCryptoCipherMode | None = None
    ivgen_alg: QCryptoIVGenAlgo | None = None
    ivgen_hash_alg: QCryptoHashAlgo | None = None
    hash_alg: QCryptoHashAlgo | None = None
    iter_time: int | None = None

@attrs.frozen(kw_only=True)
class QCryptoBlockInfo(QCryptoBlockInfoBase): ...

@attrs.frozen(kw_only=True)
class QCryptoBlockInfoBase(QapiObject):
    format: QCryptoBlockFormat

@attrs.frozen(kw_only=True)
class QCryptoBlockInfoLUKS(QapiObject):
    cipher_alg: QCryptoCipherAlgo
    cipher_mode: QCryptoCipherMode
    ivgen_alg: QCryptoIVGenAlgo
    ivgen_hash_alg: QCryptoHashAlgo | None = None
    hash_alg: QCryptoHashAlgo
    payload_offset: int
    master_key_iters: int
    uuid: str
    slots: list[QCryptoBlockInfoLUKSSlot]
    detached_header: bool | None = None

@attrs.frozen(kw_only=True)
class QCryptoBlockInfoLUKSSlot(QapiObject):
    active: bool
    key_offset: int
    iters: int | None = None
    stripes: int | None = None

@attrs.frozen(kw_only=True)
class QCryptoBlockOpenOptions(QCryptoBlockOptionsBase): ...

@attrs.frozen(kw_only=True)
class QCryptoBlockOptionsBase(QapiObject):
    format: QCryptoBlockFormat

@attrs.frozen(kw_only=True)
class QCryptoBlockOptionsLUKS(QapiObject):
    key_secret: str | None = None

@attrs.frozen(kw_only=True)
class QCryptoBlockOptionsQCow(QapiObject):
    key_secret: str | None = None

@attrs.frozen(kw_only=True)
class Qcow2BitmapInfo(QapiObject):
    name: str
    granularity: int
    flags: list[Qcow2BitmapInfoFlags]

@attrs.frozen(kw_only=True)
class Qcow2OverlapCheckFlags(QapiObject):
    template: Qcow2OverlapCheckMode | None = None
    main_header: bool | None = None
    active_l1: bool | None = None
    active_l2: bool | None = None
    refcount_table: bool | None = None
    refcount_block: bool | None = None
    snapshot_table: bool | None = None
    inactive_l1: bool | None = None
    inactive_l2: bool | None = None
    bitmap_directory: bool | None = None

@attrs.frozen(kw_only=True)
class QmpCapabilitiesArg(QapiObject):
    enable: list[QMPCapability] | None = None

@attrs.frozen(kw_only=True)
class QomGetArg(QapiObject):
    path: str
    property: str

@attrs.frozen(kw_only=True)
class QomListArg(QapiObject):
    path: str

@attrs.frozen(kw_only=True)
class QomListGetArg(QapiObject):
    paths: list[str]

@attrs.frozen(kw_only=True)
class QomListPropertiesArg(QapiObject):
    typename: str

@attrs.frozen(kw_only=True)
class QomListTypesArg(QapiObject):
    implements: str | None = None
    abstract: bool | None = None

@attrs.frozen(kw_only=True)
class QomSetArg(QapiObject):
    path: str
    property: str
    value: object

@attrs.frozen(kw_only=True)
class QtestProperties(QapiObject):
    chardev: str
    log: str | None = None

@attrs.frozen(kw_only=True)
class QueryBlockArg(QapiObject):
    flat: bool | None = None

@attrs.frozen(kw_only=True)
class QueryBlockstatsArg(QapiObject):
    query_nodes: bool | None = None

@attrs.frozen(kw_only=True)
class QueryNamedBlockNodesArg(QapiObject):
    flat: bool | None = None

@attrs.frozen(kw_only=True)
class QuorumFailureEvent(QapiObject):
    reference: str
    sector_num: int
    sectors_count: int

@attrs.frozen(kw_only=True)
class QuorumReportBadEvent(QapiObject):
    type: QuorumOpType
    error: str | None = None
    node_name: str
    sector_num: int
    sectors_count: int

@attrs.frozen(kw_only=True)
class RbdEncryptionCreateOptions(QapiObject):
    format: RbdImageEncryptionFormat

@attrs.frozen(kw_only=True)
class RbdEncryptionCreateOptionsLUKS(RbdEncryptionCreateOptionsLUKSBase): ...

@attrs.frozen(kw_only=True)
class RbdEncryptionCreateOptionsLUKS2(RbdEncryptionCreateOptionsLUKSBase): ...

@attrs.frozen(kw_only=True)
class RbdEncryptionCreateOptionsLUKSBase(RbdEncryptionOptionsLUKSBase):
    cipher_alg: QCryptoCipherAlgo | None = None

@attrs.frozen(kw_only=True)
class RbdEncryptionOptions(QapiObject):
    format: RbdImageEncryptionFormat
    parent: RbdEncryptionOptions | None = None

@attrs.frozen(kw_only=True)
class RbdEncryptionOptionsLUKS(RbdEncryptionOptionsLUKSBase): ...

@attrs.frozen(kw_only=True)
class RbdEncryptionOptionsLUKS2(RbdEncryptionOptionsLUKSBase): ...

@attrs.frozen(kw_only=True)
class RbdEncryptionOptionsLUKSAny(RbdEncryptionOptionsLUKSBase): ...

@attrs.frozen(kw_only=True)
class RbdEncryptionOptionsLUKSBase(QapiObject):
    key_secret: str

@attrs.frozen(kw_only=True)
class RemoteObjectProperties(QapiObject):
    fd: str
    devid: str

@attrs.frozen(kw_only=True)
class RingbufReadArg(QapiObject):
    device: str
    size: int
    format: DataFormat | None = None

@attrs.frozen(kw_only=True)
class RingbufWriteArg(QapiObject):
    device: str
    data: str
    format: DataFormat | None = None

@attrs.frozen(kw_only=True)
class RngEgdProperties(RngProperties):
    chardev: str

@attrs.frozen(kw_only=True)
class RngProperties(QapiObject):
    opened: bool | None = None

@attrs.frozen(kw_only=True)
class RngRandomProperties(RngProperties):
    filename: str | None = None

@attrs.frozen(kw_only=True)
class SchemaInfo(QapiObject):
    name: str
    meta_type: SchemaMetaType
    features: list[str] | None = None

@attrs.frozen(kw_only=True)
class SchemaInfoAlternate(QapiObject):
    members: list[SchemaInfoAlternateMember]

@attrs.frozen(kw_only=True)
class SchemaInfoAlternateMember(QapiObject):
    type: str

@attrs.frozen(kw_only=True)
class SchemaInfoArray(QapiObject):
    element_type: str

@attrs.frozen(kw_only=True)
class SchemaInfoBuiltin(QapiObject):
    json_type: JSONType

@attrs.frozen(kw_only=True)
class SchemaInfoCommand(QapiObject):
    arg_type: str
    ret_type: str
    allow_oob: bool | None = None

@attrs.frozen(kw_only=True)
class SchemaInfoEnum(QapiObject):
    members: list[SchemaInfoEnumMember]
    values: list[str]

@attrs.frozen(kw_only=True)
class SchemaInfoEnumMember(QapiObject):
    name: str
    features: list[str] | None = None

@attrs.frozen(kw_only=True)
class SchemaInfoEvent(QapiObject):
    arg_type: str

@attrs.frozen(kw_only=True)
class SchemaInfoObject(QapiObject):
    members: list[SchemaInfoObjectMember]
    tag: str | None = None
    variants: list[SchemaInfoObjectVariant] | None = None

@attrs.frozen(kw_only=True)
class SchemaInfoObjectMember(QapiObject):
    name: str
    type: str
    default: object | None = None
    features: list[str] | None = None

@attrs.frozen(kw_only=True)
class SchemaInfoObjectVariant(QapiObject):
    case: str
    type: str

@attrs.frozen(kw_only=True)
class SecretCommonProperties(QapiObject):
    loaded: bool | None = None
    format: QCryptoSecretFormat | None = None
    keyid: str | None = None
    iv: str | None = None

@attrs.frozen(kw_only=True)
class SecretKeyringProperties(SecretCommonProperties):
    serial: int

@attrs.frozen(kw_only=True)
class SecretProperties(SecretCommonProperties):
    data: str | None = None
    file: str | None = None

@attrs.frozen(kw_only=True)
class SevCommonProperties(QapiObject):
    sev_device: str | None = None
    cbitpos: int | None = None
    reduced_phys_bits: int
    kernel_hashes: bool | None = None

@attrs.frozen(kw_only=True)
class SevGuestProperties(SevCommonProperties):
    dh_cert_file: str | None = None
    session_file: str | None = None
    policy: int | None = None
    handle: int | None = None
    legacy_vm_type: OnOffAuto | None = None

@attrs.frozen(kw_only=True)
class SevSnpGuestProperties(SevCommonProperties):
    policy: int | None = None
    guest_visible_workarounds: str | None = None
    id_block: str | None = None
    id_auth: str | None = None
    author_key_enabled: bool | None = None
    host_data: str | None = None
    vcek_disabled: bool | None = None

@attrs.frozen(kw_only=True)
class SnapshotInfo(QapiObject):
    id: str
    name: str
    vm_state_size: int
    date_sec: int
    date_nsec: int
    vm_clock_sec: int
    vm_clock_nsec: int
    icount: int | None = None

@attrs.frozen(kw_only=True)
class SocketAddress(QapiObject):
    type: SocketAddressType

@attrs.frozen(kw_only=True)
class SocketAddressLegacy(QapiObject):
    type: SocketAddressType

@attrs.frozen(kw_only=True)
class SshHostKeyCheck(QapiObject):
    mode: SshHostKeyCheckMode

@attrs.frozen(kw_only=True)
class SshHostKeyHash(QapiObject):
    type: SshHostKeyCheckHashType
    hash: str

@attrs.frozen(kw_only=True)
class String(QapiObject):
    str: builtins.str

@attrs.frozen(kw_only=True)
class StringWrapper(QapiObject):
    data: String

@attrs.frozen(kw_only=True)
class TdxGuestProperties(QapiObject):
    attributes: int | None = None
    sept_ve_disable: bool | None = None
    mrconfigid: str | None = None
    mrowner: str | None = None
    mrownerconfig: str | None = None
    quote_generation_socket: SocketAddress | None = None

@attrs.frozen(kw_only=True)
class ThreadContextProperties(QapiObject):
    cpu_affinity: list[int] | None = None
    node_affinity: list[int] | None = None

@attrs.frozen(kw_only=True)
class ThrottleGroupProperties(QapiObject):
    limits: ThrottleLimits | None = None
    x_iops_total: int | None = None
    x_iops_total_max: int | None = None
    x_iops_total_max_length: int | None = None
    x_iops_read: int | None = None
    x_iops_read_max: int | None = None
    x_iops_read_max_length: int | None = None
    x_iops_write: int | None = None
    x_iops_write_max: int | None = None
    x_iops_write_max_length: int | None = None
    x_bps_total: int | None = None
    x_bps_total_max: int | None = None
    x_bps_total_max_length: int | None = None
    x_bps_read: int | None = None
    x_bps_read_max: int | None = None
    x_bps_read_max_length: int | None = None
    x_bps_write: int | None = None
    x_bps_write_max: int | None = None
    x_bps_write_max_length: int | None = None
    x_iops_size: int | None = None

@attrs.frozen(kw_only=True)
class ThrottleLimits(QapiObject):
    iops_total: int | None = None
    iops_total_max: int | None = None
    iops_total_max_length: int | None = None
    iops_read: int | None = None
    iops_read_max: int | None = None
    iops_read_max_length: int | None = None
    iops_write: int | None = None
    iops_write_max: int | None = None
    iops_write_max_length: int | None = None
    bps_total: int | None = None
    bps_total_max: int | None = None
    bps_total_max_length: int | None = None
    bps_read: int | None = None
    bps_read_max: int | None = None
    bps_read_max_length: int | None = None
    bps_write: int | None = None
    bps_write_max: int | None = None
    bps_write_max_length: int | None = None
    iops_size: int | None = None

@attrs.frozen(kw_only=True)
class TlsCredsAnonProperties(TlsCredsProperties):
    loaded: bool | None = None

@attrs.frozen(kw_only=True)
class TlsCredsProperties(QapiObject):
    verify_peer: bool | None = None
    dir: str | None = None
    endpoint: QCryptoTLSCredsEndpoint | None = None
    priority: str | None = None

@attrs.frozen(kw_only=True)
class TlsCredsPskProperties(TlsCredsProperties):
    loaded: bool | None = None
    username: str | None = None

@attrs.frozen(kw_only=True)
class TlsCredsX509Properties(TlsCredsProperties):
    loaded: bool | None = None
    sanity_check: bool | None = None
    passwordid: str | None = None

@attrs.frozen(kw_only=True)
class TransactionAction(QapiObject):
    type: TransactionActionKind

@attrs.frozen(kw_only=True)
class TransactionArg(QapiObject):
    actions: list[TransactionAction]
    properties: TransactionProperties | None = None

@attrs.frozen(kw_only=True)
class TransactionProperties(QapiObject):
    completion_mode: ActionCompletionMode | None = None

@attrs.frozen(kw_only=True)
class UnixSocketAddress(QapiObject):
    path: str
    abstract: bool | None = None
    tight: bool | None = None

@attrs.frozen(kw_only=True)
class UnixSocketAddressWrapper(QapiObject):
    data: UnixSocketAddress

@attrs.frozen(kw_only=True)
class VersionInfo(QapiObject):
    qemu: VersionTriple
    package: str

@attrs.frozen(kw_only=True)
class VersionTriple(QapiObject):
    major: int
    minor: int
    micro: int

@attrs.frozen(kw_only=True)
class VfioUserServerProperties(QapiObject):
    socket: SocketAddress
    device: str

@attrs.frozen(kw_only=True)
class VmdkExtentInfo(QapiObject):
    filename: str
    format: str
    virtual_size: int
    cluster_size: int | None = None
    compressed: bool | None = None

@attrs.frozen(kw_only=True)
class VserportChangeEvent(QapiObject):
    id: str
    open: bool

@attrs.frozen(kw_only=True)
class VsockSocketAddress(QapiObject):
    cid: str
    port: str

@attrs.frozen(kw_only=True)
class VsockSocketAddressWrapper(QapiObject):
    data: VsockSocketAddress

@attrs.frozen(kw_only=True)
class XBlockdevAmendArg(QapiObject):
    job_id: str
    node_name: str
    options: BlockdevAmendOptions
    force: bool | None = None

@attrs.frozen(kw_only=True)
class XBlockdevChangeArg(QapiObject):
    parent: str
    child: str | None = None
    node: str | None = None

@attrs.frozen(kw_only=True)
class XBlockdevSetIothreadArg(QapiObject):
    node_name: str
    iothread: StrOrNull
    force: bool | None = None

@attrs.frozen(kw_only=True)
class XDbgBlockGraph(QapiObject):
    nodes: list[XDbgBlockGraphNode]
    edges: list[XDbgBlockGraphEdge]

@attrs.frozen(kw_only=True)
class XDbgBlockGraphEdge(QapiObject):
    parent: int
    child: int
    name: str
    perm: list[BlockPermission]
    shared_perm: list[BlockPermission]

@attrs.frozen(kw_only=True)
class XDbgBlockGraphNode(QapiObject):
    id: int
    type: XDbgBlockGraphNodeType
    name: str

@final
@attrs.frozen(kw_only=True)
class BlockExportOptions_nbd(BlockExportOptionsNbd, BlockExportOptions):
    type: BlockExportType = ...

@final
@attrs.frozen(kw_only=True)
class BlockExportOptions_vhost_user_blk(BlockExportOptionsVhostUserBlk, BlockExportOptions):
    type: BlockExportType = ...

@final
@attrs.frozen(kw_only=True)
class BlockExportOptions_fuse(BlockExportOptionsFuse, BlockExportOptions):
    type: BlockExportType = ...

@final
@attrs.frozen(kw_only=True)
class BlockExportOptions_vduse_blk(BlockExportOptionsVduseBlk, BlockExportOptions):
    type: BlockExportType = ...

@final
@attrs.frozen(kw_only=True)
class BlockJobChangeOptions_commit(BlockJobChangeOptions):
    type: JobType = ...

@final
@attrs.frozen(kw_only=True)
class BlockJobChangeOptions_stream(BlockJobChangeOptions):
    type: JobType = ...

@final
@attrs.frozen(kw_only=True)
class BlockJobChangeOptions_mirror(BlockJobChangeOptionsMirror, BlockJobChangeOptions):
    type: JobType = ...

@final
@attrs.frozen(kw_only=True)
class BlockJobChangeOptions_backup(BlockJobChangeOptions):
    type: JobType = ...

@final
@attrs.frozen(kw_only=True)
class BlockJobChangeOptions_create(BlockJobChangeOptions):
    type: JobType = ...

@final
@attrs.frozen(kw_only=True)
class BlockJobChangeOptions_amend(BlockJobChangeOptions):
    type: JobType = ...

@final
@attrs.frozen(kw_only=True)
class BlockJobChangeOptions_snapshot_load(BlockJobChangeOptions):
    type: JobType = ...

@final
@attrs.frozen(kw_only=True)
class BlockJobChangeOptions_snapshot_save(BlockJobChangeOptions):
    type: JobType = ...

@final
@attrs.frozen(kw_only=True)
class BlockJobChangeOptions_snapshot_delete(BlockJobChangeOptions):
    type: JobType = ...

@final
@attrs.frozen(kw_only=True)
class BlockJobInfo_commit(BlockJobInfo):
    type: JobType = ...

@final
@attrs.frozen(kw_only=True)
class BlockJobInfo_stream(BlockJobInfo):
    type: JobType = ...

@final
@attrs.frozen(kw_only=True)
class BlockJobInfo_mirror(BlockJobInfoMirror, BlockJobInfo):
    type: JobType = ...

@final
@attrs.frozen(kw_only=True)
class BlockJobInfo_backup(BlockJobInfo):
    type: JobType = ...

@final
@attrs.frozen(kw_only=True)
class BlockJobInfo_create(BlockJobInfo):
    type: JobType = ...

@final
@attrs.frozen(kw_only=True)
class BlockJobInfo_amend(BlockJobInfo):
    type: JobType = ...

@final
@attrs.frozen(kw_only=True)
class BlockJobInfo_snapshot_load(BlockJobInfo):
    type: JobType = ...

@final
@attrs.frozen(kw_only=True)
class BlockJobInfo_snapshot_save(BlockJobInfo):
    type: JobType = ...

@final
@attrs.frozen(kw_only=True)
class BlockJobInfo_snapshot_delete(BlockJobInfo):
    type: JobType = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_blkdebug(BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_blklogwrites(BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_blkreplay(BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_blkverify(BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_bochs(BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_cloop(BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_compress(BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_copy_before_write(BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_copy_on_read(BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_dmg(BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_file(BlockStatsSpecificFile, BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_snapshot_access(BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_ftp(BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_ftps(BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_gluster(BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_host_cdrom(BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_host_device(BlockStatsSpecificFile, BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_http(BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_https(BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_iscsi(BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_luks(BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_nbd(BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_nfs(BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_null_aio(BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_null_co(BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_nvme(BlockStatsSpecificNvme, BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_parallels(BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_preallocate(BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_qcow(BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_qcow2(BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_qed(BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_quorum(BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_raw(BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_rbd(BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_replication(BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_ssh(BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_throttle(BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_vdi(BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_vhdx(BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_vmdk(BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_vpc(BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockStatsSpecific_vvfat(BlockStatsSpecific):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_blkdebug(BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_blklogwrites(BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_blkreplay(BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_blkverify(BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_bochs(BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_cloop(BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_compress(BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_copy_before_write(BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_copy_on_read(BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_dmg(BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_file(BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_snapshot_access(BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_ftp(BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_ftps(BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_gluster(BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_host_cdrom(BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_host_device(BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_http(BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_https(BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_iscsi(BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_luks(BlockdevAmendOptionsLUKS, BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_nbd(BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_nfs(BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_null_aio(BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_null_co(BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_nvme(BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_parallels(BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_preallocate(BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_qcow(BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_qcow2(BlockdevAmendOptionsQcow2, BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_qed(BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_quorum(BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_raw(BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_rbd(BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_replication(BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_ssh(BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_throttle(BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_vdi(BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_vhdx(BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_vmdk(BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_vpc(BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevAmendOptions_vvfat(BlockdevAmendOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_blkdebug(BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_blklogwrites(BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_blkreplay(BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_blkverify(BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_bochs(BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_cloop(BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_compress(BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_copy_before_write(BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_copy_on_read(BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_dmg(BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_file(BlockdevCreateOptionsFile, BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_snapshot_access(BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_ftp(BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_ftps(BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_gluster(BlockdevCreateOptionsGluster, BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_host_cdrom(BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_host_device(BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_http(BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_https(BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_iscsi(BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_luks(BlockdevCreateOptionsLUKS, BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_nbd(BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_nfs(BlockdevCreateOptionsNfs, BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_null_aio(BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_null_co(BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_nvme(BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_parallels(BlockdevCreateOptionsParallels, BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_preallocate(BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_qcow(BlockdevCreateOptionsQcow, BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_qcow2(BlockdevCreateOptionsQcow2, BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_qed(BlockdevCreateOptionsQed, BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_quorum(BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_raw(BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_rbd(BlockdevCreateOptionsRbd, BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_replication(BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_ssh(BlockdevCreateOptionsSsh, BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_throttle(BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_vdi(BlockdevCreateOptionsVdi, BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_vhdx(BlockdevCreateOptionsVhdx, BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_vmdk(BlockdevCreateOptionsVmdk, BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_vpc(BlockdevCreateOptionsVpc, BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevCreateOptions_vvfat(BlockdevCreateOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_blkdebug(BlockdevOptionsBlkdebug, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_blklogwrites(BlockdevOptionsBlklogwrites, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_blkreplay(BlockdevOptionsBlkreplay, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_blkverify(BlockdevOptionsBlkverify, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_bochs(BlockdevOptionsGenericFormat, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_cloop(BlockdevOptionsGenericFormat, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_compress(BlockdevOptionsGenericFormat, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_copy_before_write(BlockdevOptionsCbw, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_copy_on_read(BlockdevOptionsCor, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_dmg(BlockdevOptionsGenericFormat, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_file(BlockdevOptionsFile, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_snapshot_access(BlockdevOptionsGenericFormat, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_ftp(BlockdevOptionsCurlFtp, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_ftps(BlockdevOptionsCurlFtps, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_gluster(BlockdevOptionsGluster, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_host_cdrom(BlockdevOptionsFile, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_host_device(BlockdevOptionsFile, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_http(BlockdevOptionsCurlHttp, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_https(BlockdevOptionsCurlHttps, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_iscsi(BlockdevOptionsIscsi, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_luks(BlockdevOptionsLUKS, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_nbd(BlockdevOptionsNbd, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_nfs(BlockdevOptionsNfs, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_null_aio(BlockdevOptionsNull, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_null_co(BlockdevOptionsNull, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_nvme(BlockdevOptionsNVMe, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_parallels(BlockdevOptionsGenericFormat, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_preallocate(BlockdevOptionsPreallocate, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_qcow(BlockdevOptionsQcow, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_qcow2(BlockdevOptionsQcow2, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_qed(BlockdevOptionsGenericCOWFormat, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_quorum(BlockdevOptionsQuorum, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_raw(BlockdevOptionsRaw, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_rbd(BlockdevOptionsRbd, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_replication(BlockdevOptionsReplication, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_ssh(BlockdevOptionsSsh, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_throttle(BlockdevOptionsThrottle, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_vdi(BlockdevOptionsGenericFormat, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_vhdx(BlockdevOptionsGenericFormat, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_vmdk(BlockdevOptionsGenericCOWFormat, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_vpc(BlockdevOptionsGenericFormat, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevOptions_vvfat(BlockdevOptionsVVFAT, BlockdevOptions):
    driver: BlockdevDriver = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevQcow2Encryption_aes(QCryptoBlockOptionsQCow, BlockdevQcow2Encryption):
    format: BlockdevQcow2EncryptionFormat = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevQcow2Encryption_luks(QCryptoBlockOptionsLUKS, BlockdevQcow2Encryption):
    format: BlockdevQcow2EncryptionFormat = ...

@final
@attrs.frozen(kw_only=True)
class BlockdevQcowEncryption_aes(QCryptoBlockOptionsQCow, BlockdevQcowEncryption):
    format: BlockdevQcowEncryptionFormat = ...

@final
@attrs.frozen(kw_only=True)
class ChardevBackend_file(ChardevFileWrapper, ChardevBackend):
    type: ChardevBackendKind = ...

@final
@attrs.frozen(kw_only=True)
class ChardevBackend_serial(ChardevHostdevWrapper, ChardevBackend):
    type: ChardevBackendKind = ...

@final
@attrs.frozen(kw_only=True)
class ChardevBackend_parallel(ChardevHostdevWrapper, ChardevBackend):
    type: ChardevBackendKind = ...

@final
@attrs.frozen(kw_only=True)
class ChardevBackend_pipe(ChardevHostdevWrapper, ChardevBackend):
    type: ChardevBackendKind = ...

@final
@attrs.frozen(kw_only=True)
class ChardevBackend_socket(ChardevSocketWrapper, ChardevBackend):
    type: ChardevBackendKind = ...

@final
@attrs.frozen(kw_only=True)
class ChardevBackend_udp(ChardevUdpWrapper, ChardevBackend):
    type: ChardevBackendKind = ...

@final
@attrs.frozen(kw_only=True)
class ChardevBackend_pty(ChardevPtyWrapper, ChardevBackend):
    type: ChardevBackendKind = ...

@final
@attrs.frozen(kw_only=True)
class ChardevBackend_null(ChardevCommonWrapper, ChardevBackend):
    type: ChardevBackendKind = ...

@final
@attrs.frozen(kw_only=True)
class ChardevBackend_mux(ChardevMuxWrapper, ChardevBackend):
    type: ChardevBackendKind = ...

@final
@attrs.frozen(kw_only=True)
class ChardevBackend_msmouse(ChardevCommonWrapper, ChardevBackend):
    type: ChardevBackendKind = ...

@final
@attrs.frozen(kw_only=True)
class ChardevBackend_wctablet(ChardevCommonWrapper, ChardevBackend):
    type: ChardevBackendKind = ...

@final
@attrs.frozen(kw_only=True)
class ChardevBackend_braille(ChardevCommonWrapper, ChardevBackend):
    type: ChardevBackendKind = ...

@final
@attrs.frozen(kw_only=True)
class ChardevBackend_testdev(ChardevCommonWrapper, ChardevBackend):
    type: ChardevBackendKind = ...

@final
@attrs.frozen(kw_only=True)
class ChardevBackend_stdio(ChardevStdioWrapper, ChardevBackend):
    type: ChardevBackendKind = ...

@final
@attrs.frozen(kw_only=True)
class ChardevBackend_console(ChardevCommonWrapper, ChardevBackend):
    type: ChardevBackendKind = ...

@final
@attrs.frozen(kw_only=True)
class ChardevBackend_spicevmc(ChardevSpiceChannelWrapper, ChardevBackend):
    type: ChardevBackendKind = ...

@final
@attrs.frozen(kw_only=True)
class ChardevBackend_spiceport(ChardevSpicePortWrapper, ChardevBackend):
    type: ChardevBackendKind = ...

@final
@attrs.frozen(kw_only=True)
class ChardevBackend_qemu_vdagent(ChardevQemuVDAgentWrapper, ChardevBackend):
    type: ChardevBackendKind = ...

@final
@attrs.frozen(kw_only=True)
class ChardevBackend_dbus(ChardevDBusWrapper, ChardevBackend):
    type: ChardevBackendKind = ...

@final
@attrs.frozen(kw_only=True)
class ChardevBackend_vc(ChardevVCWrapper, ChardevBackend):
    type: ChardevBackendKind = ...

@final
@attrs.frozen(kw_only=True)
class ChardevBackend_ringbuf(ChardevRingbufWrapper, ChardevBackend):
    type: ChardevBackendKind = ...

@final
@attrs.frozen(kw_only=True)
class ChardevBackend_memory(ChardevRingbufWrapper, ChardevBackend):
    type: ChardevBackendKind = ...

@final
@attrs.frozen(kw_only=True)
class ChardevBackend_hub(ChardevHubWrapper, ChardevBackend):
    type: ChardevBackendKind = ...

@final
@attrs.frozen(kw_only=True)
class ImageInfoSpecific_luks(ImageInfoSpecificLUKSWrapper, ImageInfoSpecific):
    type: ImageInfoSpecificKind = ...

@final
@attrs.frozen(kw_only=True)
class ImageInfoSpecific_rbd(ImageInfoSpecificRbdWrapper, ImageInfoSpecific):
    type: ImageInfoSpecificKind = ...

@final
@attrs.frozen(kw_only=True)
class ImageInfoSpecific_qcow2(ImageInfoSpecificQCow2Wrapper, ImageInfoSpecific):
    type: ImageInfoSpecificKind = ...

@final
@attrs.frozen(kw_only=True)
class ImageInfoSpecific_vmdk(ImageInfoSpecificVmdkWrapper, ImageInfoSpecific):
    type: ImageInfoSpecificKind = ...

@final
@attrs.frozen(kw_only=True)
class ImageInfoSpecific_file(ImageInfoSpecificFileWrapper, ImageInfoSpecific):
    type: ImageInfoSpecificKind = ...

@final
@attrs.frozen(kw_only=True)
class ImageInfoSpecificQCow2Encryption_aes(ImageInfoSpecificQCow2Encryption):
    format: BlockdevQcow2EncryptionFormat = ...

@final
@attrs.frozen(kw_only=True)
class ImageInfoSpecificQCow2Encryption_luks(QCryptoBlockInfoLUKS, ImageInfoSpecificQCow2Encryption):
    format: BlockdevQcow2EncryptionFormat = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_authz_list(AuthZListProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_authz_listfile(AuthZListFileProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_authz_pam(AuthZPAMProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_authz_simple(AuthZSimpleProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_can_bus(ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_can_host_socketcan(CanHostSocketcanProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_colo_compare(ColoCompareProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_cryptodev_backend(CryptodevBackendProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_cryptodev_backend_builtin(CryptodevBackendProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_cryptodev_backend_lkcf(CryptodevBackendProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_cryptodev_vhost_user(CryptodevVhostUserProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_dbus_vmstate(DBusVMStateProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_filter_buffer(FilterBufferProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_filter_dump(FilterDumpProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_filter_mirror(FilterMirrorProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_filter_redirector(FilterRedirectorProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_filter_replay(NetfilterProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_filter_rewriter(FilterRewriterProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_input_barrier(InputBarrierProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_input_linux(InputLinuxProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_iothread(IothreadProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_main_loop(MainLoopProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_memory_backend_epc(MemoryBackendEpcProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_memory_backend_file(MemoryBackendFileProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_memory_backend_memfd(MemoryBackendMemfdProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_memory_backend_ram(MemoryBackendProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_pef_guest(ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_pr_manager_helper(PrManagerHelperProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_qtest(QtestProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_rng_builtin(RngProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_rng_egd(RngEgdProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_rng_random(RngRandomProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_secret(SecretProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_secret_keyring(SecretKeyringProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_sev_guest(SevGuestProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_thread_context(ThreadContextProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_s390_pv_guest(ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_throttle_group(ThrottleGroupProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_tls_creds_anon(TlsCredsAnonProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_tls_creds_psk(TlsCredsPskProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_tls_creds_x509(TlsCredsX509Properties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_tls_cipher_suites(TlsCredsProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_x_remote_object(RemoteObjectProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_x_vfio_user_server(VfioUserServerProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_acpi_generic_initiator(AcpiGenericInitiatorProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_acpi_generic_port(AcpiGenericPortProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_iommufd(IOMMUFDProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_memory_backend_shm(MemoryBackendShmProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_monitor_hmp(MonitorHMPProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_monitor_qmp(MonitorQMPProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_sev_snp_guest(SevSnpGuestProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class ObjectOptions_tdx_guest(TdxGuestProperties, ObjectOptions):
    qom_type: ObjectType = ...

@final
@attrs.frozen(kw_only=True)
class QCryptoAkCipherOptions_rsa(QCryptoAkCipherOptionsRSA, QCryptoAkCipherOptions):
    alg: QCryptoAkCipherAlgorithm = ...

@final
@attrs.frozen(kw_only=True)
class QCryptoBlockAmendOptions_qcow(QCryptoBlockAmendOptions):
    format: QCryptoBlockFormat = ...

@final
@attrs.frozen(kw_only=True)
class QCryptoBlockAmendOptions_luks(QCryptoBlockAmendOptionsLUKS, QCryptoBlockAmendOptions):
    format: QCryptoBlockFormat = ...

@final
@attrs.frozen(kw_only=True)
class QCryptoBlockCreateOptions_qcow(QCryptoBlockOptionsQCow, QCryptoBlockCreateOptions):
    format: QCryptoBlockFormat = ...

@final
@attrs.frozen(kw_only=True)
class QCryptoBlockCreateOptions_luks(QCryptoBlockCreateOptionsLUKS, QCryptoBlockCreateOptions):
    format: QCryptoBlockFormat = ...

@final
@attrs.frozen(kw_only=True)
class QCryptoBlockInfo_qcow(QCryptoBlockInfo):
    format: QCryptoBlockFormat = ...

@final
@attrs.frozen(kw_only=True)
class QCryptoBlockInfo_luks(QCryptoBlockInfoLUKS, QCryptoBlockInfo):
    format: QCryptoBlockFormat = ...

@final
@attrs.frozen(kw_only=True)
class QCryptoBlockOpenOptions_qcow(QCryptoBlockOptionsQCow, QCryptoBlockOpenOptions):
    format: QCryptoBlockFormat = ...

@final
@attrs.frozen(kw_only=True)
class QCryptoBlockOpenOptions_luks(QCryptoBlockOptionsLUKS, QCryptoBlockOpenOptions):
    format: QCryptoBlockFormat = ...

@final
@attrs.frozen(kw_only=True)
class RbdEncryptionCreateOptions_luks(RbdEncryptionCreateOptionsLUKS, RbdEncryptionCreateOptions):
    format: RbdImageEncryptionFormat = ...

@final
@attrs.frozen(kw_only=True)
class RbdEncryptionCreateOptions_luks2(RbdEncryptionCreateOptionsLUKS2, RbdEncryptionCreateOptions):
    format: RbdImageEncryptionFormat = ...

@final
@attrs.frozen(kw_only=True)
class RbdEncryptionCreateOptions_luks_any(RbdEncryptionCreateOptions):
    format: RbdImageEncryptionFormat = ...

@final
@attrs.frozen(kw_only=True)
class RbdEncryptionOptions_luks(RbdEncryptionOptionsLUKS, RbdEncryptionOptions):
    format: RbdImageEncryptionFormat = ...

@final
@attrs.frozen(kw_only=True)
class RbdEncryptionOptions_luks2(RbdEncryptionOptionsLUKS2, RbdEncryptionOptions):
    format: RbdImageEncryptionFormat = ...

@final
@attrs.frozen(kw_only=True)
class RbdEncryptionOptions_luks_any(RbdEncryptionOptionsLUKSAny, RbdEncryptionOptions):
    format: RbdImageEncryptionFormat = ...

@final
@attrs.frozen(kw_only=True)
class SchemaInfo_builtin(SchemaInfoBuiltin, SchemaInfo):
    meta_type: SchemaMetaType = ...

@final
@attrs.frozen(kw_only=True)
class SchemaInfo_enum(SchemaInfoEnum, SchemaInfo):
    meta_type: SchemaMetaType = ...

@final
@attrs.frozen(kw_only=True)
class SchemaInfo_array(SchemaInfoArray, SchemaInfo):
    meta_type: SchemaMetaType = ...

@final
@attrs.frozen(kw_only=True)
class SchemaInfo_object(SchemaInfoObject, SchemaInfo):
    meta_type: SchemaMetaType = ...

@final
@attrs.frozen(kw_only=True)
class SchemaInfo_alternate(SchemaInfoAlternate, SchemaInfo):
    meta_type: SchemaMetaType = ...

@final
@attrs.frozen(kw_only=True)
class SchemaInfo_command(SchemaInfoCommand, SchemaInfo):
    meta_type: SchemaMetaType = ...

@final
@attrs.frozen(kw_only=True)
class SchemaInfo_event(SchemaInfoEvent, SchemaInfo):
    meta_type: SchemaMetaType = ...

@final
@attrs.frozen(kw_only=True)
class SocketAddress_inet(InetSocketAddress, SocketAddress):
    type: SocketAddressType = ...

@final
@attrs.frozen(kw_only=True)
class SocketAddress_unix(UnixSocketAddress, SocketAddress):
    type: SocketAddressType = ...

@final
@attrs.frozen(kw_only=True)
class SocketAddress_vsock(VsockSocketAddress, SocketAddress):
    type: SocketAddressType = ...

@final
@attrs.frozen(kw_only=True)
class SocketAddress_fd(FdSocketAddress, SocketAddress):
    type: SocketAddressType = ...

@final
@attrs.frozen(kw_only=True)
class SocketAddressLegacy_inet(InetSocketAddressWrapper, SocketAddressLegacy):
    type: SocketAddressType = ...

@final
@attrs.frozen(kw_only=True)
class SocketAddressLegacy_unix(UnixSocketAddressWrapper, SocketAddressLegacy):
    type: SocketAddressType = ...

@final
@attrs.frozen(kw_only=True)
class SocketAddressLegacy_vsock(VsockSocketAddressWrapper, SocketAddressLegacy):
    type: SocketAddressType = ...

@final
@attrs.frozen(kw_only=True)
class SocketAddressLegacy_fd(FdSocketAddressWrapper, SocketAddressLegacy):
    type: SocketAddressType = ...

@final
@attrs.frozen(kw_only=True)
class SshHostKeyCheck_none(SshHostKeyCheck):
    mode: SshHostKeyCheckMode = ...

@final
@attrs.frozen(kw_only=True)
class SshHostKeyCheck_hash(SshHostKeyHash, SshHostKeyCheck):
    mode: SshHostKeyCheckMode = ...

@final
@attrs.frozen(kw_only=True)
class SshHostKeyCheck_known_hosts(SshHostKeyCheck):
    mode: SshHostKeyCheckMode = ...

@final
@attrs.frozen(kw_only=True)
class TransactionAction_abort(AbortWrapper, TransactionAction):
    type: TransactionActionKind = ...

@final
@attrs.frozen(kw_only=True)
class TransactionAction_block_dirty_bitmap_add(BlockDirtyBitmapAddWrapper, TransactionAction):
    type: TransactionActionKind = ...

@final
@attrs.frozen(kw_only=True)
class TransactionAction_block_dirty_bitmap_remove(BlockDirtyBitmapWrapper, TransactionAction):
    type: TransactionActionKind = ...

@final
@attrs.frozen(kw_only=True)
class TransactionAction_block_dirty_bitmap_clear(BlockDirtyBitmapWrapper, TransactionAction):
    type: TransactionActionKind = ...

@final
@attrs.frozen(kw_only=True)
class TransactionAction_block_dirty_bitmap_enable(BlockDirtyBitmapWrapper, TransactionAction):
    type: TransactionActionKind = ...

@final
@attrs.frozen(kw_only=True)
class TransactionAction_block_dirty_bitmap_disable(BlockDirtyBitmapWrapper, TransactionAction):
    type: TransactionActionKind = ...

@final
@attrs.frozen(kw_only=True)
class TransactionAction_block_dirty_bitmap_merge(BlockDirtyBitmapMergeWrapper, TransactionAction):
    type: TransactionActionKind = ...

@final
@attrs.frozen(kw_only=True)
class TransactionAction_blockdev_backup(BlockdevBackupWrapper, TransactionAction):
    type: TransactionActionKind = ...

@final
@attrs.frozen(kw_only=True)
class TransactionAction_blockdev_snapshot(BlockdevSnapshotWrapper, TransactionAction):
    type: TransactionActionKind = ...

@final
@attrs.frozen(kw_only=True)
class TransactionAction_blockdev_snapshot_internal_sync(
    BlockdevSnapshotInternalWrapper, TransactionAction
):
    type: TransactionActionKind = ...

@final
@attrs.frozen(kw_only=True)
class TransactionAction_blockdev_snapshot_sync(BlockdevSnapshotSyncWrapper, TransactionAction):
    type: TransactionActionKind = ...

@final
@attrs.frozen(kw_only=True)
class TransactionAction_drive_backup(DriveBackupWrapper, TransactionAction):
    type: TransactionActionKind = ...

BlockDirtyBitmapOrStr: TypeAlias = str | BlockDirtyBitmap
BlockExportIothreads: TypeAlias = str | list[str]
BlockdevRef: TypeAlias = BlockdevOptions | str
BlockdevRefOrNull: TypeAlias = BlockdevOptions | str | QapiNull
Qcow2OverlapChecks: TypeAlias = Qcow2OverlapCheckFlags | Qcow2OverlapCheckMode
StrOrNull: TypeAlias = str | QapiNull
