//! What is told of models over gRPC, to whom and at which cost.

use prost::Message;
use sandpiper_tests::{GrpcClient, GrpcStatus, Server, model};
use serde_json::json;

use super::{
    client, code, inference,
    message::{
        ModelConfigRequest, ModelConfigResponse, ModelMetadataRequest, ModelMetadataResponse,
        ModelStatisticsRequest, ModelStatisticsResponse, RepositoryIndexRequest,
        RepositoryIndexResponse, RepositoryModelLoadRequest, RepositoryModelLoadResponse,
    },
    refused, tenant,
};
use crate::oip_reading::slow_free_tier;

fn statistics(client: &GrpcClient, name: &str) -> Result<ModelStatisticsResponse, GrpcStatus> {
    let request = ModelStatisticsRequest { name: name.to_owned(), ..Default::default() };
    client.unary(&inference("ModelStatistics"), &request)
}

#[test]
fn what_reads_much_has_the_rate_of_its_tenant() {
    fn runs_out<A: Message + Default>(client: &GrpcClient, method: &str, request: &impl Message) {
        let turned_away = (0..100)
            .find_map(|_| client.unary::<A>(&inference(method), request).err())
            .unwrap_or_else(|| panic!("{method} has no rate"));
        assert_eq!(turned_away.code, code::RESOURCE_EXHAUSTED, "{turned_away:?}");
    }
    let (server, _policies) = slow_free_tier();
    let free = server.tenant("small", "free");
    free.put_model("mul-add", &model("mul-add.onnx")).expect(201);
    let client = client(&server, &free);
    let name = || "mul-add".to_owned();
    let request = ModelStatisticsRequest { name: name(), ..Default::default() };
    runs_out::<ModelStatisticsResponse>(&client, "ModelStatistics", &request);
    let request = ModelConfigRequest { name: name(), ..Default::default() };
    runs_out::<ModelConfigResponse>(&client, "ModelConfig", &request);
    let request = RepositoryIndexRequest::default();
    runs_out::<RepositoryIndexResponse>(&client, "RepositoryIndex", &request);
    let request = RepositoryModelLoadRequest { model_name: name(), ..Default::default() };
    runs_out::<RepositoryModelLoadResponse>(&client, "RepositoryModelLoad", &request);
    let request = ModelMetadataRequest { name: name(), ..Default::default() };
    for _ in 0..100 {
        client
            .unary::<ModelMetadataResponse>(&inference("ModelMetadata"), &request)
            .expect("what clients ask before they call is free");
    }
}

#[test]
fn a_guest_of_a_model_sees_neither_its_statistics_nor_its_other_versions() {
    let server = Server::start();
    let owner = tenant(&server, "acme");
    owner.client.put("/api/v1/models/mul-add?activate=false", model("digits")).expect(201);
    let beta = server.tenant("beta", "standard");
    let grants = json!({ "tenants": ["beta"] });
    owner.client.put_json("/api/v1/models/mul-add/grants", &grants).expect(200);
    let (owners, guests) = (client(&server, &owner), client(&server, &beta));
    let versions = |client: &GrpcClient| {
        let request =
            ModelMetadataRequest { name: "acme/mul-add".to_owned(), ..Default::default() };
        let answer: ModelMetadataResponse =
            client.unary(&inference("ModelMetadata"), &request).unwrap();
        answer.versions
    };
    assert_eq!(versions(&owners), ["1", "2"]);
    assert_eq!(versions(&guests), ["1"]);
    assert_eq!(statistics(&owners, "acme/mul-add").unwrap().model_stats.len(), 2);
    refused(statistics(&guests, "acme/mul-add"), code::PERMISSION_DENIED);
    assert_eq!(statistics(&guests, "").unwrap().model_stats, []);
}
