//! The examples' answers are those of onnxruntime and of Magika's own package, on the same input.

use sandpiper_tests::{Server, Tenant, expectations, expected, read, repository};
use serde_json::{Value, json};

/// A tenant without a rate limit, since these tests are quick.
fn tenant(server: &Server) -> Tenant {
    server.tenant("acme", "dedicated")
}

fn close(ours: &Value, theirs: &Value, tolerance: f64) -> bool {
    match (ours.as_f64(), theirs.as_f64()) {
        (Some(ours), Some(theirs)) => (ours - theirs).abs() <= tolerance,
        _ => false,
    }
}

#[test]
fn hello_greets() {
    let server = Server::start();
    let tenant = tenant(&server);
    tenant.deploy_example("hello", None);
    assert_eq!(tenant.invoke("hello", "/").expect(200).text(), "hello\n");
    assert_eq!(tenant.invoke("hello", "/?name=Ada").expect(200).text(), "hello, Ada\n");
}

#[test]
fn digits_reads_every_picture_as_onnxruntime_does() {
    let server = Server::start();
    let tenant = tenant(&server);
    tenant.deploy_example("digits", Some("digits"));
    for expected in expectations("digits") {
        let file = expected["file"].as_str().unwrap();
        let picture = read(repository().join("examples/digits/images").join(file));
        let answer = tenant.call("POST", "digits", "/").body(picture).send().expect(200).json();
        let digit = expected["digit"].as_u64().unwrap();
        assert_eq!(answer["digit"], digit, "{file}");
        // Decoders of JPEG may differ by a shade.
        let tolerance = if file.ends_with(".jpg") { 5e-3 } else { 1e-5 };
        let theirs = &expected["probs"][digit as usize];
        assert!(close(&answer["confidence"], theirs, tolerance), "{file}: {answer}, not {theirs}");
    }
}

#[test]
fn digits_tells_what_is_no_picture() {
    let server = Server::start();
    let tenant = tenant(&server);
    tenant.deploy_example("digits", Some("digits"));
    let post = |body: &[u8]| tenant.call("POST", "digits", "/").body(body).send();
    assert_eq!(post(b"").expect(400).json()["error"]["code"], "bad_request");
    assert_eq!(post(b"no picture").expect(422).json()["error"]["code"], "unprocessable");
    let picture = read(repository().join("examples/digits/images/seven.png"));
    let cut = post(&picture[..picture.len() / 2]).expect(422);
    assert_eq!(cut.header("x-sandpiper-error"), None, "the function's own error is not ours");
}

#[test]
fn iris_names_every_row_as_onnxruntime_does() {
    const CLASSES: [&str; 3] = ["setosa", "versicolor", "virginica"];
    let server = Server::start();
    let tenant = tenant(&server);
    tenant.deploy_example("iris", Some("iris"));
    let expected = expectations("iris");
    let check = |ours: &Value, theirs: &Value| {
        let label = theirs["label"].as_u64().unwrap() as usize;
        assert_eq!(ours["class"], CLASSES[label], "{theirs}");
        for (class, theirs) in CLASSES.iter().zip(theirs["probabilities"].as_array().unwrap()) {
            let ours = &ours["probabilities"][class];
            assert!(close(ours, theirs, 1e-5), "{class}: {ours}, not {theirs}");
        }
    };
    for one in &expected {
        let row = &one["row"];
        let flower = json!({
            "sepal_length": row[0], "sepal_width": row[1], "petal_length": row[2], "petal_width": row[3],
        });
        check(&tenant.call("POST", "iris", "/").json(&flower).send().expect(200).json(), one);
    }
    let rows: Vec<&Value> = expected.iter().map(|one| &one["row"]).collect();
    let table = json!({ "rows": rows });
    let answer = tenant.call("POST", "iris", "/").json(&table).send().expect(200).json();
    let predictions = answer["predictions"].as_array().unwrap();
    assert_eq!(predictions.len(), expected.len());
    for (ours, theirs) in predictions.iter().zip(&expected) {
        check(ours, theirs);
    }
}

#[test]
fn filetype_tells_every_file_as_magika_does() {
    let server = Server::start();
    let tenant = tenant(&server);
    tenant.deploy_example("filetype", Some("magika"));
    for theirs in expectations("filetype") {
        let file = theirs["file"].as_str().unwrap();
        let content = read(expected(&format!("files/{file}")));
        let ours = tenant.call("POST", "filetype", "/").body(content).send().expect(200).json();
        assert_eq!(ours["type"], theirs["label"], "{file}: {ours}");
        assert!(close(&ours["score"], &theirs["score"], 1e-4), "{file}: {ours}, not {theirs}");
        // Magika says `undefined` where it did not ask its model.
        let model = theirs["model_label"].as_str().filter(|label| *label != "undefined");
        let model = model.filter(|label| theirs["label"] != *label);
        assert_eq!(ours["model_type"].as_str(), model, "{file}: {ours}");
    }
}
