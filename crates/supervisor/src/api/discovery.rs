//! What tools ask a gRPC server first: whether it is there (`grpc.health.v1.Health`), and what it has (reflection).

use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_reflection::server::Builder;

use super::proto;

/// The operators' service.
pub const ADMIN: &str = "rhone.v1.Admin";
/// What supervisors say to each other beside Raft.
pub const AGENT: &str = "rhone.v1.Agent";
/// Raft.
pub const RAFT: &str = "rhone.v1.Raft";

/// Makes the reflection service in both of its versions: older tools (`grpcurl` before 1.9, Postman) know `v1alpha` alone.
///
/// # Errors
///
/// Descriptors that cannot be read, which the build would have refused.
pub fn reflection() -> Result<Routes, tonic_reflection::server::Error> {
    let described = || {
        Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(rhone_consensus::proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    Ok(Routes::new(described().build_v1()?).add_service(described().build_v1alpha()?))
}

/// Adds the health of a server that has these services: each is said to serve, and so is the server (`""`).
pub async fn with_health(routes: Routes, services: &[&str]) -> Routes {
    let (reporter, service) = tonic_health::server::health_reporter();
    for name in [""].iter().chain(services) {
        reporter.set_service_status(name, ServingStatus::Serving).await;
    }
    routes.add_service(service)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::TcpListener;
    use tonic::transport::{Channel, Server};
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;

    use super::*;

    async fn served() -> Channel {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let routes = with_health(reflection().expect("descriptors"), &[ADMIN]).await;
        let server = Server::builder().add_routes(routes);
        tokio::spawn(server.serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)));
        let endpoint = Channel::from_shared(format!("http://{address}")).expect("a URI");
        endpoint.timeout(Duration::from_secs(60)).connect().await.expect("a connection")
    }

    #[tokio::test]
    async fn each_service_that_is_there_is_known_to_serve_and_no_other() {
        let mut client = HealthClient::new(served().await);
        let mut ask = async |service: &str| {
            let request = HealthCheckRequest { service: service.to_owned() };
            client.check(request).await.map(|reply| reply.into_inner().status)
        };
        for service in ["", ADMIN] {
            assert_eq!(ask(service).await.expect("known"), 1, "{service}");
        }
        assert_eq!(ask(RAFT).await.expect_err("not here").code(), tonic::Code::NotFound);
    }

    /// Asks for the list of services in one version of reflection.
    macro_rules! listed {
        ($version:ident, $channel:expr) => {{
            use tonic_reflection::pb::$version as pb;
            let request = pb::ServerReflectionRequest {
                host: String::new(),
                message_request: Some(pb::server_reflection_request::MessageRequest::ListServices(
                    String::new(),
                )),
            };
            let mut client = pb::server_reflection_client::ServerReflectionClient::new($channel);
            let asked = client.server_reflection_info(futures_util::stream::iter([request])).await;
            let reply = asked.expect("answers").into_inner().message().await.expect("an answer");
            match reply.and_then(|reply| reply.message_response) {
                Some(pb::server_reflection_response::MessageResponse::ListServicesResponse(list)) => {
                    list.service.into_iter().map(|service| service.name).collect::<Vec<_>>()
                }
                other => panic!("no list: {other:?}"),
            }
        }};
    }

    #[tokio::test]
    async fn both_versions_of_reflection_name_the_services() {
        let channel = served().await;
        for listed in [listed!(v1, channel.clone()), listed!(v1alpha, channel)] {
            for service in [ADMIN, AGENT, RAFT, "grpc.health.v1.Health"] {
                assert!(listed.iter().any(|name| name == service), "{service}: {listed:?}");
            }
        }
    }
}
