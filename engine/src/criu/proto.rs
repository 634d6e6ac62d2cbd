//! CRIU's RPC messages, as far as they are used. Numbers are those of
//! `images/rpc.proto`. Decoding skips unknown fields: what somebody else said is
//! passed on as it came, or changed by [`super::rpc`] field for field.

use prost::Message;

/// `criu_req_type`.
pub mod request_type {
    pub const DUMP: i32 = 1;
    pub const RESTORE: i32 = 2;
    pub const NOTIFY: i32 = 6;
    pub const FEATURE_CHECK: i32 = 9;
}

/// `criu_cg_mode.IGNORE`.
pub const CGROUPS_IGNORE: i32 = 0;
/// `criu_network_lock_method.NFTABLES`.
pub const LOCK_NFTABLES: i32 = 2;

/// The options that may be there several times.
pub const REPEATED: [u32; 2] = [INHERIT_FD, EXTERNAL];
const INHERIT_FD: u32 = 27;
const EXTERNAL: u32 = 37;
/// `criu_opts.freeze_cgroup`.
pub const FREEZE_CGROUP: u32 = 44;
/// `criu_opts.config_file`.
pub const CONFIG_FILE: u32 = 51;

/// `criu_opts`.
#[derive(Clone, PartialEq, Message)]
pub struct Options {
    #[prost(int32, required, tag = "1")]
    pub images_dir_fd: i32,
    #[prost(int32, optional, tag = "2")]
    pub pid: Option<i32>,
    #[prost(bool, optional, tag = "3")]
    pub leave_running: Option<bool>,
    #[prost(bool, optional, tag = "5")]
    pub tcp_established: Option<bool>,
    #[prost(bool, optional, tag = "7")]
    pub shell_job: Option<bool>,
    #[prost(bool, optional, tag = "8")]
    pub file_locks: Option<bool>,
    #[prost(int32, optional, tag = "9")]
    pub log_level: Option<i32>,
    #[prost(string, optional, tag = "10")]
    pub log_file: Option<String>,
    #[prost(bool, optional, tag = "12")]
    pub notify_scripts: Option<bool>,
    #[prost(int32, optional, tag = "17")]
    pub work_dir_fd: Option<i32>,
    #[prost(bool, optional, tag = "18")]
    pub link_remap: Option<bool>,
    #[prost(bool, optional, tag = "24")]
    pub manage_cgroups: Option<bool>,
    #[prost(bool, optional, tag = "26")]
    pub rst_sibling: Option<bool>,
    #[prost(message, repeated, tag = "27")]
    pub inherit_fd: Vec<Fd>,
    #[prost(int32, optional, tag = "34")]
    pub manage_cgroups_mode: Option<i32>,
    #[prost(uint32, optional, tag = "35")]
    pub ghost_limit: Option<u32>,
    #[prost(string, repeated, tag = "37")]
    pub external: Vec<String>,
    #[prost(uint32, optional, tag = "45")]
    pub timeout: Option<u32>,
    #[prost(bool, optional, tag = "48")]
    pub lazy_pages: Option<bool>,
    #[prost(string, optional, tag = "51")]
    pub config_file: Option<String>,
    #[prost(bool, optional, tag = "52")]
    pub tcp_close: Option<bool>,
    #[prost(int32, optional, tag = "64")]
    pub network_lock: Option<i32>,
    #[prost(string, optional, tag = "68")]
    pub images_dir: Option<String>,
}

/// `inherit_fd`: a descriptor of CRIU's in place of what the images know by a key.
#[derive(Clone, PartialEq, Message)]
pub struct Fd {
    #[prost(string, required, tag = "1")]
    pub key: String,
    #[prost(int32, required, tag = "2")]
    pub fd: i32,
}

/// `criu_req`.
#[derive(Clone, PartialEq, Message)]
pub struct Request {
    #[prost(int32, required, tag = "1")]
    pub kind: i32,
    #[prost(message, optional, tag = "2")]
    pub options: Option<Options>,
    #[prost(bool, optional, tag = "3")]
    pub notify_success: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    pub keep_open: Option<bool>,
    #[prost(message, optional, tag = "5")]
    pub features: Option<Features>,
}

/// `criu_features`.
#[derive(Clone, PartialEq, Message)]
pub struct Features {
    #[prost(bool, optional, tag = "2")]
    pub lazy_pages: Option<bool>,
}

/// `criu_notify`.
#[derive(Clone, PartialEq, Message)]
pub struct Notify {
    #[prost(string, optional, tag = "1")]
    pub script: Option<String>,
    #[prost(int32, optional, tag = "2")]
    pub pid: Option<i32>,
}

/// `criu_restore_resp`.
#[derive(Clone, PartialEq, Message)]
pub struct RestoreResponse {
    #[prost(int32, required, tag = "1")]
    pub pid: i32,
}

/// `criu_resp`.
#[derive(Clone, PartialEq, Message)]
pub struct Response {
    #[prost(int32, required, tag = "1")]
    pub kind: i32,
    #[prost(bool, required, tag = "2")]
    pub success: bool,
    #[prost(message, optional, tag = "4")]
    pub restore: Option<RestoreResponse>,
    #[prost(message, optional, tag = "5")]
    pub notify: Option<Notify>,
    #[prost(int32, optional, tag = "7")]
    pub errno: Option<i32>,
    #[prost(string, optional, tag = "9")]
    pub message: Option<String>,
}
