//! Messages of `proto/open_inference.proto`: configuration, statistics, the repository and settings.

use std::collections::HashMap;

#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ModelConfigRequest {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub version: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ModelConfigResponse {
    #[prost(message, optional, tag = "1")]
    pub config: Option<ModelConfig>,
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ModelInput {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(enumeration = "DataType", tag = "2")]
    pub data_type: i32,
    #[prost(int64, repeated, tag = "4")]
    pub dims: Vec<i64>,
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ModelOutput {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(enumeration = "DataType", tag = "2")]
    pub data_type: i32,
    #[prost(int64, repeated, tag = "3")]
    pub dims: Vec<i64>,
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ModelDynamicBatching {
    #[prost(int32, repeated, tag = "1")]
    pub preferred_batch_size: Vec<i32>,
    #[prost(uint64, tag = "2")]
    pub max_queue_delay_microseconds: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct ModelTransactionPolicy {
    #[prost(bool, tag = "1")]
    pub decoupled: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct ModelResponseCache {
    #[prost(bool, tag = "1")]
    pub enable: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ModelConfig {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub platform: String,
    #[prost(int32, tag = "4")]
    pub max_batch_size: i32,
    #[prost(message, repeated, tag = "5")]
    pub input: Vec<ModelInput>,
    #[prost(message, repeated, tag = "6")]
    pub output: Vec<ModelOutput>,
    #[prost(string, tag = "17")]
    pub backend: String,
    #[prost(message, optional, tag = "19")]
    pub model_transaction_policy: Option<ModelTransactionPolicy>,
    #[prost(message, optional, tag = "24")]
    pub response_cache: Option<ModelResponseCache>,
    #[prost(oneof = "model_config::SchedulingChoice", tags = "11")]
    pub scheduling_choice: Option<model_config::SchedulingChoice>,
}

pub mod model_config {
    #[derive(Clone, PartialEq, Eq, Hash, prost::Oneof)]
    pub enum SchedulingChoice {
        #[prost(message, tag = "11")]
        DynamicBatching(super::ModelDynamicBatching),
    }
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ModelStatisticsRequest {
    /// Empty for every model.
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub version: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct StatisticDuration {
    #[prost(uint64, tag = "1")]
    pub count: u64,
    #[prost(uint64, tag = "2")]
    pub ns: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct InferStatistics {
    #[prost(message, optional, tag = "1")]
    pub success: Option<StatisticDuration>,
    #[prost(message, optional, tag = "2")]
    pub fail: Option<StatisticDuration>,
    #[prost(message, optional, tag = "3")]
    pub queue: Option<StatisticDuration>,
    #[prost(message, optional, tag = "4")]
    pub compute_input: Option<StatisticDuration>,
    #[prost(message, optional, tag = "5")]
    pub compute_infer: Option<StatisticDuration>,
    #[prost(message, optional, tag = "6")]
    pub compute_output: Option<StatisticDuration>,
    #[prost(message, optional, tag = "7")]
    pub cache_hit: Option<StatisticDuration>,
    #[prost(message, optional, tag = "8")]
    pub cache_miss: Option<StatisticDuration>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct InferBatchStatistics {
    #[prost(uint64, tag = "1")]
    pub batch_size: u64,
    #[prost(message, optional, tag = "2")]
    pub compute_input: Option<StatisticDuration>,
    #[prost(message, optional, tag = "3")]
    pub compute_infer: Option<StatisticDuration>,
    #[prost(message, optional, tag = "4")]
    pub compute_output: Option<StatisticDuration>,
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct MemoryUsage {
    #[prost(string, tag = "1")]
    pub r#type: String,
    #[prost(int64, tag = "2")]
    pub id: i64,
    #[prost(uint64, tag = "3")]
    pub byte_size: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ModelStatistics {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub version: String,
    /// Milliseconds since 1970.
    #[prost(uint64, tag = "3")]
    pub last_inference: u64,
    /// Rows.
    #[prost(uint64, tag = "4")]
    pub inference_count: u64,
    /// Runs of the graph.
    #[prost(uint64, tag = "5")]
    pub execution_count: u64,
    #[prost(message, optional, tag = "6")]
    pub inference_stats: Option<InferStatistics>,
    #[prost(message, repeated, tag = "7")]
    pub batch_stats: Vec<InferBatchStatistics>,
    #[prost(message, repeated, tag = "8")]
    pub memory_usage: Vec<MemoryUsage>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ModelStatisticsResponse {
    #[prost(message, repeated, tag = "1")]
    pub model_stats: Vec<ModelStatistics>,
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ModelRepositoryParameter {
    #[prost(oneof = "model_repository_parameter::ParameterChoice", tags = "1, 2, 3, 4")]
    pub parameter_choice: Option<model_repository_parameter::ParameterChoice>,
}

pub mod model_repository_parameter {
    #[derive(Clone, PartialEq, Eq, Hash, prost::Oneof)]
    pub enum ParameterChoice {
        #[prost(bool, tag = "1")]
        BoolParam(bool),
        #[prost(int64, tag = "2")]
        Int64Param(i64),
        #[prost(string, tag = "3")]
        StringParam(String),
        #[prost(bytes, tag = "4")]
        BytesParam(bytes::Bytes),
    }
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct RepositoryIndexRequest {
    #[prost(string, tag = "1")]
    pub repository_name: String,
    /// Only models that are ready.
    #[prost(bool, tag = "2")]
    pub ready: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct RepositoryIndexResponse {
    #[prost(message, repeated, tag = "1")]
    pub models: Vec<repository_index_response::ModelIndex>,
}

pub mod repository_index_response {
    #[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
    pub struct ModelIndex {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(string, tag = "2")]
        pub version: String,
        #[prost(string, tag = "3")]
        pub state: String,
        #[prost(string, tag = "4")]
        pub reason: String,
    }
}

/// Triton's clients put the model's name into field 2, KServe's into field 1. Where 2 is empty, 1 counts.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RepositoryModelLoadRequest {
    #[prost(string, tag = "1")]
    pub repository_name: String,
    #[prost(string, tag = "2")]
    pub model_name: String,
    #[prost(map = "string, message", tag = "3")]
    pub parameters: HashMap<String, ModelRepositoryParameter>,
}

/// KServe's answer; Triton's is empty, and its clients pass over what they do not know.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct RepositoryModelLoadResponse {
    #[prost(string, tag = "1")]
    pub model_name: String,
    #[prost(bool, tag = "2")]
    pub is_loaded: bool,
}

/// See RepositoryModelLoadRequest.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RepositoryModelUnloadRequest {
    #[prost(string, tag = "1")]
    pub repository_name: String,
    #[prost(string, tag = "2")]
    pub model_name: String,
    #[prost(map = "string, message", tag = "3")]
    pub parameters: HashMap<String, ModelRepositoryParameter>,
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct RepositoryModelUnloadResponse {
    #[prost(string, tag = "1")]
    pub model_name: String,
    #[prost(bool, tag = "2")]
    pub is_unloaded: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct TraceSettingRequest {
    #[prost(map = "string, message", tag = "1")]
    pub settings: HashMap<String, trace_setting_request::SettingValue>,
    #[prost(string, tag = "2")]
    pub model_name: String,
}

pub mod trace_setting_request {
    #[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
    pub struct SettingValue {
        #[prost(string, repeated, tag = "1")]
        pub value: Vec<String>,
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct TraceSettingResponse {
    #[prost(map = "string, message", tag = "1")]
    pub settings: HashMap<String, trace_setting_response::SettingValue>,
}

pub mod trace_setting_response {
    #[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
    pub struct SettingValue {
        #[prost(string, repeated, tag = "1")]
        pub value: Vec<String>,
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct LogSettingsRequest {
    #[prost(map = "string, message", tag = "1")]
    pub settings: HashMap<String, log_settings_request::SettingValue>,
}

pub mod log_settings_request {
    #[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
    pub struct SettingValue {
        #[prost(oneof = "setting_value::ParameterChoice", tags = "1, 2, 3")]
        pub parameter_choice: Option<setting_value::ParameterChoice>,
    }
    pub mod setting_value {
        #[derive(Clone, PartialEq, Eq, Hash, prost::Oneof)]
        pub enum ParameterChoice {
            #[prost(bool, tag = "1")]
            BoolParam(bool),
            #[prost(uint32, tag = "2")]
            Uint32Param(u32),
            #[prost(string, tag = "3")]
            StringParam(String),
        }
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct LogSettingsResponse {
    #[prost(map = "string, message", tag = "1")]
    pub settings: HashMap<String, log_settings_response::SettingValue>,
}

pub mod log_settings_response {
    #[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
    pub struct SettingValue {
        #[prost(oneof = "setting_value::ParameterChoice", tags = "1, 2, 3")]
        pub parameter_choice: Option<setting_value::ParameterChoice>,
    }
    pub mod setting_value {
        #[derive(Clone, PartialEq, Eq, Hash, prost::Oneof)]
        pub enum ParameterChoice {
            #[prost(bool, tag = "1")]
            BoolParam(bool),
            #[prost(uint32, tag = "2")]
            Uint32Param(u32),
            #[prost(string, tag = "3")]
            StringParam(String),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum DataType {
    TypeInvalid = 0,
    TypeBool = 1,
    TypeUint8 = 2,
    TypeUint16 = 3,
    TypeUint32 = 4,
    TypeUint64 = 5,
    TypeInt8 = 6,
    TypeInt16 = 7,
    TypeInt32 = 8,
    TypeInt64 = 9,
    TypeFp16 = 10,
    TypeFp32 = 11,
    TypeFp64 = 12,
    TypeString = 13,
    TypeBf16 = 14,
}
