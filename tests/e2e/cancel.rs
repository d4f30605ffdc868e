//! Clients that leave: their sandbox is dropped, and what they had in the queue of a model never runs.

use std::{thread, time::Duration};

use sandpiper_tests::{Connection, Server, Tenant, guest, model, until};

fn tenant(server: &Server) -> Tenant {
    let tenant = server.tenant("acme", "dedicated");
    tenant.put_function("m", &guest("misbehave"), "").expect(201);
    tenant
}

fn outcome(server: &Server, outcome: &str) -> f64 {
    let labels = [("function", "m"), ("outcome", outcome)];
    server.metrics().sum("sandpiper_invocations_total", &labels)
}

fn sandboxes(server: &Server) -> f64 {
    server.metrics().sum("sandpiper_sandboxes", &[])
}

fn ask(server: &Server, tenant: &Tenant, path: &str) -> Connection {
    let mut connection = server.connect();
    connection.send(format!(
        "GET /fn/acme/m{path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n",
        tenant.key
    ));
    connection
}

#[test]
fn a_client_that_disconnects_drops_its_sandbox() {
    let mut server = Server::start();
    let tenant = tenant(&server);
    let connections: Vec<Connection> = (0..10).map(|_| ask(&server, &tenant, "/hang")).collect();
    until("all sandboxes run", || (sandboxes(&server) == 10.0).then_some(()));
    drop(connections);
    until("all sandboxes are gone", || (sandboxes(&server) == 0.0).then_some(()));
    assert_eq!(outcome(&server, "cancelled"), 10.0);
    assert_eq!(tenant.invoke("m", "/ok").expect(200).text(), "ok");
    server.still_runs();
}

#[test]
fn a_client_that_leaves_a_stream_drops_its_sandbox() {
    let server = Server::start();
    let tenant = tenant(&server);
    let mut connection = ask(&server, &tenant, "/stream?chunks=1000000&ms=10");
    connection.head();
    connection.chunk();
    assert_eq!(sandboxes(&server), 1.0);
    drop(connection);
    until("the sandbox is gone", || (sandboxes(&server) == 0.0).then_some(()));
}

#[test]
fn a_client_that_leaves_in_the_middle_of_its_body_drops_its_sandbox() {
    let server = Server::start();
    let tenant = tenant(&server);
    let mut connection = server.connect();
    connection.send(format!(
        "POST /fn/acme/m/body-size HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: 1000\r\n\r\nsome",
        tenant.key
    ));
    until("the sandbox runs", || (sandboxes(&server) == 1.0).then_some(()));
    drop(connection);
    until("the sandbox is gone", || (sandboxes(&server) == 0.0).then_some(()));
    tenant.invoke("m", "/ok").expect(200);
}

#[test]
fn a_disconnected_clients_queued_inference_never_runs() {
    let mut server = Server::with_settings("inference_threads = 1");
    let tenant = tenant(&server);
    tenant.put_model("slow", &model("slow.onnx")).expect(201);
    const SLOW: &str = "/slow-infer?model=slow&input=x&shape=1,1";
    let inference = |server: &Server| {
        server.metrics().sum("sandpiper_inference_microseconds_total", &[("function", "m")])
    };
    let depth = |server: &Server| server.metrics().sum("sandpiper_inference_queue_depth", &[]);
    // What one run costs.
    tenant.invoke("m", SLOW).expect(200);
    let one = inference(&server);
    assert!(one > 0.0, "{}", server.metrics().text());
    thread::scope(|scope| {
        // One keeps the only thread busy, six wait behind it and leave.
        let busy = scope.spawn(|| tenant.invoke("m", &format!("{SLOW}&times=3")).expect(200));
        until("the thread is busy", || (sandboxes(&server) >= 1.0).then_some(()));
        thread::sleep(Duration::from_millis(50));
        let waiting: Vec<Connection> = (0..6).map(|_| ask(&server, &tenant, SLOW)).collect();
        until("some wait or the thread is free", || {
            (depth(&server) >= 1.0 || busy.is_finished()).then_some(())
        });
        drop(waiting);
        busy.join().unwrap();
    });
    until("the queue is empty", || {
        (depth(&server) == 0.0 && sandboxes(&server) == 0.0).then_some(())
    });
    // A new request is not behind the six.
    tenant.invoke("m", SLOW).expect(200);
    assert_eq!(outcome(&server, "completed") + outcome(&server, "cancelled"), 9.0);
    assert!(outcome(&server, "cancelled") >= 1.0, "{}", server.metrics().text());
    server.still_runs();
}
