//! The parameters of a load: a model's configuration and its file, as the transports write them.

use std::borrow::Cow;

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use bytes::Bytes;
use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::oip::{OipError, request::unreadable, shown};

/// The longest configuration.
const CONFIG_BYTES_MAX: usize = 64 * 1024;
/// More parameters than these are not looked at.
pub(crate) const PARAMETERS_MAX: usize = 64;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What came with a load.
#[derive(Debug, Default)]
pub(crate) struct LoadParameters {
    /// Triton's `ModelConfig` in JSON.
    pub(super) config: Option<String>,
    pub(super) file: Option<ModelFile>,
}

/// A model's file, from `file:<version>/<name>.onnx`. The version is the sender's own: this server numbers versions
/// itself and never gives a number twice.
#[derive(Debug)]
pub(super) struct ModelFile {
    pub(super) name: String,
    pub(super) content: Bytes,
}

/// A parameter's value, as a transport has it.
pub(crate) enum Given<'a> {
    /// JSON's text, which stands for bytes as base64.
    Json(Cow<'a, str>),
    Text(String),
    Bytes(Bytes),
    /// Anything else.
    Other,
}

impl LoadParameters {
    /// Reads the body of a load, where none is an empty object. Takes long where there is a file in it.
    pub(crate) fn from_json(body: &[u8]) -> Result<Self, OipError> {
        let body: &[u8] = if body.is_empty() { b"{}" } else { body };
        let body: Body<'_> = serde_json::from_slice(body).map_err(|error| unreadable(&error))?;
        let mut read = LoadParameters::default();
        for (name, value) in body.parameters.map(|named| named.0).unwrap_or_default() {
            let text = match value.get().starts_with('"') {
                true => serde_json::from_str(value.get()).map_err(|error| unreadable(&error))?,
                false => None,
            };
            read.note(&name, text.map_or(Given::Other, |Text(text)| Given::Json(text)))?;
        }
        Ok(read)
    }

    /// Takes one parameter.
    pub(crate) fn note(&mut self, name: &str, value: Given<'_>) -> Result<(), OipError> {
        if let Some(path) = name.strip_prefix("file:") {
            return self.note_file(path, value);
        }
        if name != "config" {
            let text = format!("a load has no parameter `{}`", shown(name));
            return Err(OipError::invalid(text));
        }
        let text = match value {
            Given::Json(text) => text.into_owned(),
            Given::Text(text) => text,
            Given::Bytes(_) | Given::Other => {
                let text = "the parameter `config` is the model's configuration as a text of JSON";
                return Err(OipError::invalid(text));
            }
        };
        if text.len() > CONFIG_BYTES_MAX {
            let text = format!("the configuration is longer than {} KiB", CONFIG_BYTES_MAX >> 10);
            return Err(OipError::TooLarge(text));
        }
        match self.config.replace(text) {
            Some(_) => Err(OipError::invalid("the parameter `config` is given twice")),
            None => Ok(()),
        }
    }

    fn note_file(&mut self, path: &str, value: Given<'_>) -> Result<(), OipError> {
        let (version, name) = path.split_once('/').unwrap_or_default();
        let is_number = !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number || !name.ends_with(".onnx") || name.contains('/') {
            let text = format!(
                "`file:{}` is no file that can be loaded: a model is one ONNX file, `file:<version>/<name>.onnx`, with \
                 its weights inside",
                shown(path)
            );
            return Err(OipError::invalid(text));
        }
        if self.file.is_some() {
            let text =
                "a load brings one file: each is a version of its own, and is loaded by itself";
            return Err(OipError::invalid(text));
        }
        let refuse = |what: &str| {
            OipError::invalid(format!("the content of `file:{}` is {what}", shown(path)))
        };
        let content = match value {
            Given::Bytes(bytes) => bytes,
            Given::Json(text) => match BASE64.decode(text.as_bytes()) {
                Ok(bytes) => bytes.into(),
                Err(_) => {
                    let what = "not base64 (RFC 4648, section 4, without line breaks)";
                    return Err(refuse(what));
                }
            },
            Given::Text(_) => return Err(refuse("a text: it is sent as bytes")),
            Given::Other => return Err(refuse("missing")),
        };
        if content.is_empty() {
            return Err(refuse("empty"));
        }
        self.file = Some(ModelFile { name: name.to_owned(), content });
        Ok(())
    }
}

/// The body of a load over REST.
#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow, default)]
    parameters: Option<Named<'a>>,
}

#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// The parameters as they stand in the body, in their order and with doubles.
struct Named<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Named<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = Named<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of parameters")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut named = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    if named.len() == PARAMETERS_MAX {
                        let text = format!("a load has at most {PARAMETERS_MAX} parameters");
                        return Err(A::Error::custom(text));
                    }
                    named.push(entry);
                }
                Ok(Named(named))
            }
        }
        deserializer.deserialize_map(Names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: &str) -> String {
        match LoadParameters::from_json(body.as_bytes()) {
            Err(OipError::InvalidArgument(text)) => text,
            other => panic!("{body}: {other:?}"),
        }
    }

    #[test]
    fn a_file_is_read_as_clients_write_it() {
        // `AP/+` is the bytes 0, 255 and 254; some writers of JSON escape what others do not, or leave the padding out.
        for (text, bytes) in [
            ("AP/+", &[0, 255, 254][..]),
            ("AP\\/+", &[0, 255, 254]),
            ("AP/\\u002b", &[0, 255, 254]),
            ("AP8=", &[0, 255]),
            ("AP8", &[0, 255]),
        ] {
            let body = format!(r#"{{"parameters":{{"file:7/m.onnx":"{text}"}}}}"#);
            let read = LoadParameters::from_json(body.as_bytes()).unwrap();
            let file = read.file.unwrap();
            assert_eq!((&*file.name, &*file.content), ("m.onnx", bytes), "{text}");
            assert!(read.config.is_none());
        }
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let of = |parameters: &str| refused(&format!(r#"{{"parameters":{{{parameters}}}}}"#));
        for (file, said) in [
            (r#""file:1/m.onnx":"AP8!""#, "not base64"),
            (r#""file:1/m.onnx":"AP\n8=""#, "not base64"),
            (r#""file:1/m.onnx":"""#, "empty"),
            (r#""file:1/m.onnx":null"#, "missing"),
            (r#""file:1/m.onnx":7"#, "missing"),
            (r#""file:m.onnx":"AP8=""#, "one ONNX file"),
            (r#""file:one/m.onnx":"AP8=""#, "one ONNX file"),
            (r#""file:1/m.data":"AP8=""#, "one ONNX file"),
            (r#""file:1/../m.onnx":"AP8=""#, "one ONNX file"),
            (r#""file:1/m.onnx":"AP8=","file:2/m.onnx":"AP8=""#, "one file"),
            (r#""file:1/m.onnx":"AP8=","file:1/m.onnx":"AP8=""#, "one file"),
            (r#""config":"{}","config":"{}""#, "twice"),
            (r#""config":{}"#, "a text of JSON"),
            (r#""speed":3"#, "`speed`"),
        ] {
            let text = of(file);
            assert!(text.contains(said), "{file}: {text}");
        }
    }

    #[test]
    fn parameters_and_configurations_have_an_end() {
        let many: Vec<String> = (0..=PARAMETERS_MAX).map(|n| format!(r#""p{n}":1"#)).collect();
        let body = format!(r#"{{"parameters":{{{}}}}}"#, many.join(","));
        assert!(refused(&body).contains("at most 64 parameters"));
        let mut read = LoadParameters::default();
        let long = Given::Text(" ".repeat(CONFIG_BYTES_MAX + 1));
        assert!(matches!(read.note("config", long), Err(OipError::TooLarge(_))));
    }

    proptest::proptest! {
        #[test]
        fn no_body_makes_the_reader_panic(
            body in r#"\{"parameters":\{("(config|file:1/m.onnx)":("[A-Za-z0-9+/=\\]{0,9}"|[0-9]|null),?){0,3}\}\}|.{0,99}"#,
        ) {
            let _ = LoadParameters::from_json(body.as_bytes());
        }

        #[test]
        fn every_file_comes_as_it_was_sent(bytes in proptest::collection::vec(proptest::num::u8::ANY, 1..300)) {
            let body = serde_json::json!({ "parameters": { "file:1/m.onnx": BASE64.encode(&bytes) } });
            let read = LoadParameters::from_json(body.to_string().as_bytes()).unwrap();
            proptest::prop_assert_eq!(read.file.unwrap().content, bytes);
        }
    }
}
