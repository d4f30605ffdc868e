//! Names the species of an iris by four measures, one flower or many at a time.

use sandpiper_guest::prelude::*;
use serde::{Deserialize, Serialize};

const CLASSES: [&str; 3] = ["setosa", "versicolor", "virginica"];
const ROWS_MAX: usize = 1_000;

/// The measures of one flower, in centimetres.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flower {
    sepal_length: f32,
    sepal_width: f32,
    petal_length: f32,
    petal_width: f32,
}

impl Flower {
    /// The measures in the order in which the model reads them.
    pub fn row(&self) -> [f32; 4] {
        [self.sepal_length, self.sepal_width, self.petal_length, self.petal_width]
    }
}

/// Many flowers.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    rows: Vec<[f32; 4]>,
}

/// What the function is asked.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Question {
    /// About many flowers.
    Table(Table),
    /// About one.
    Flower(Flower),
}

/// The answer for one flower.
#[derive(Debug, Serialize)]
pub struct Prediction {
    class: &'static str,
    probabilities: Probabilities,
}

#[derive(Debug, Serialize)]
struct Probabilities {
    setosa: f32,
    versicolor: f32,
    virginica: f32,
}

#[derive(Serialize)]
struct Predictions {
    predictions: Vec<Prediction>,
}

/// Answers one flower with its class and probabilities, and rows with a list of those.
#[handler]
pub fn iris(request: Request) -> Result<Response> {
    match parse(&request)? {
        Question::Flower(flower) => match predict(&[flower.row()])?.pop() {
            Some(prediction) => Response::json(&prediction),
            None => Err(Error::internal("the model gave no answer")),
        },
        Question::Table(Table { rows }) => {
            Response::json(&Predictions { predictions: predict(&rows)? })
        }
    }
}

fn parse(request: &Request) -> Result<Question> {
    let question = request.json().map_err(|_| {
        Error::bad_request(
            "send {\"sepal_length\": x, \"sepal_width\": x, \"petal_length\": x, \
             \"petal_width\": x} or {\"rows\": [[x, x, x, x], …]}",
        )
    })?;
    if let Question::Table(Table { rows }) = &question
        && (rows.is_empty() || rows.len() > ROWS_MAX)
    {
        return Err(Error::unprocessable(format!("send between 1 and {ROWS_MAX} rows")));
    }
    Ok(question)
}

fn predict(rows: &[[f32; 4]]) -> Result<Vec<Prediction>> {
    let x = Tensor::f32([rows.len(), 4], rows.as_flattened());
    let outputs = Model::named("iris")?.run([("X", x)])?;
    let labels = outputs.get("label")?.to_i64()?;
    predictions(&labels, &outputs.get("probabilities")?.to_f32()?, rows.len())
}

/// The answers to what the model gives: for each of `rows` flowers a label and three probabilities.
pub fn predictions(labels: &[i64], probabilities: &[f32], rows: usize) -> Result<Vec<Prediction>> {
    let (probabilities, rest) = probabilities.as_chunks();
    if labels.len() != rows || probabilities.len() != rows || !rest.is_empty() {
        return Err(Error::internal("the model does not answer every row"));
    }
    let predictions = labels.iter().zip(probabilities).map(|(label, probabilities)| {
        let class = usize::try_from(*label).ok().and_then(|label| CLASSES.get(label).copied());
        let class = class.ok_or_else(|| Error::internal("the model names a class of its own"))?;
        let [setosa, versicolor, virginica] = *probabilities;
        Ok(Prediction { class, probabilities: Probabilities { setosa, versicolor, virginica } })
    });
    predictions.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls every flower by the whole part of its first measure.
    fn model() -> testing::Guard {
        testing::model("iris", |inputs| {
            let rows = inputs.get("X")?.to_f32()?;
            let rows: Vec<i64> = rows.iter().step_by(4).map(|first| *first as i64).collect();
            let probabilities = [0.25, 0.5, 0.25].repeat(rows.len());
            Ok([
                ("label", Tensor::i64([rows.len()], &rows)),
                ("probabilities", Tensor::f32([rows.len(), 3], &probabilities)),
            ])
        })
    }

    fn ask(body: &str) -> (u16, String) {
        let response = testing::call(iris, testing::post("/", body));
        (response.status(), String::from_utf8(response.body().to_vec()).unwrap())
    }

    #[test]
    fn one_flower() {
        let _model = model();
        let flower = r#"{"sepal_length":2,"sepal_width":1.5,"petal_length":1,"petal_width":0.2}"#;
        let probabilities = r#"{"setosa":0.25,"versicolor":0.5,"virginica":0.25}"#;
        let expected = format!(r#"{{"class":"virginica","probabilities":{probabilities}}}"#);
        assert_eq!(ask(flower), (200, expected));
    }

    #[test]
    fn many_flowers() {
        let _model = model();
        let (status, body) = ask(r#"{"rows":[[0,1,1,1],[1,1,1,1]]}"#);
        assert_eq!(status, 200);
        assert!(body.starts_with(r#"{"predictions":[{"class":"setosa","#), "{body}");
        assert!(body.contains(r#"{"class":"versicolor","#), "{body}");
    }

    #[test]
    fn what_is_no_flower_is_refused() {
        let _model = model();
        for (body, status) in [
            ("", 400),
            ("[]", 400),
            ("{}", 400),
            (r#"{"sepal_length":1}"#, 400),
            (r#"{"rows":[[1,2,3]]}"#, 400),
            (r#"{"rows":[[1,2,3,4]],"more":1}"#, 400),
            (r#"{"rows":[]}"#, 422),
        ] {
            assert_eq!(ask(body).0, status, "{body}");
        }
        assert_eq!(ask(r#"{"rows":[[7,1,1,1]]}"#).0, 500, "an unknown class");
    }

    #[test]
    fn the_rows_of_one_run_are_bounded() {
        let _model = model();
        for (rows, status) in [(ROWS_MAX, 200), (ROWS_MAX + 1, 422)] {
            let rows = vec!["[1,1,1,1]"; rows].join(",");
            assert_eq!(ask(&format!(r#"{{"rows":[{rows}]}}"#)).0, status);
        }
    }
}
