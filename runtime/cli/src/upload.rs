//! Bodies of uploads: their length is known beforehand, their bytes are counted as they leave.

use std::{
    fs::File,
    io::{self, Cursor, Read},
    path::Path,
};

use crate::{
    error::{CliError, Result},
    output::Task,
};

/// One body to be sent.
pub(crate) struct Upload {
    pub(crate) content_type: String,
    pub(crate) length: u64,
    reader: Box<dyn Read>,
}

impl Upload {
    /// The bytes of a file, streamed.
    pub(crate) fn file(path: &Path) -> Result<Self> {
        let failed = |error: io::Error| {
            CliError::usage(format!("{} cannot be read", path.display()))
                .why(error)
                .next("check the path")
        };
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(CliError::usage(format!("{} is not a file", path.display())));
        }
        if metadata.len() == 0 {
            return Err(CliError::usage(format!("{} is empty", path.display())));
        }
        // A file that grows meanwhile does not break the announced length.
        let reader = Box::new(file.take(metadata.len()));
        let content_type = "application/octet-stream".to_owned();
        Ok(Upload { content_type, length: metadata.len(), reader })
    }

    /// A component and its manifest as a multipart form.
    pub(crate) fn function(component: &Path, manifest: &str) -> Result<Self> {
        let manifest = Part::text("manifest", "sandpiper.toml", "application/toml", manifest);
        let component = Self::file(component)?;
        Ok(Self::form(vec![
            manifest,
            Part::of("component", "component.wasm", "application/wasm", component),
        ]))
    }

    /// A model and its samples as a multipart form.
    pub(crate) fn model(model: &Path, samples: &Path) -> Result<Self> {
        let (model, samples) = (Self::file(model)?, Self::file(samples)?);
        Ok(Self::form(vec![
            Part::of("samples", "samples.json", "application/json", samples),
            Part::of("model", "model.onnx", "application/octet-stream", model),
        ]))
    }

    fn form(parts: Vec<Part>) -> Self {
        let boundary = format!("sandpiper-{:032x}", rand::random::<u128>());
        let (mut length, mut reader): (u64, Box<dyn Read>) = (0, Box::new(io::empty()));
        let mut separator = format!("--{boundary}\r\n");
        for Part { name, file, kind, upload } in parts {
            let head = format!(
                "{separator}Content-Disposition: form-data; name=\"{name}\"; \
                 filename=\"{file}\"\r\nContent-Type: {kind}\r\n\r\n"
            );
            length += head.len() as u64 + upload.length;
            reader = Box::new(reader.chain(Cursor::new(head)).chain(upload.reader));
            separator = format!("\r\n--{boundary}\r\n");
        }
        let tail = format!("\r\n--{boundary}--\r\n");
        length += tail.len() as u64;
        let content_type = format!("multipart/form-data; boundary={boundary}");
        Upload { content_type, length, reader: Box::new(reader.chain(Cursor::new(tail))) }
    }

    /// The reader, which moves `task`'s bar.
    pub(crate) fn counted(self, task: &Task) -> impl Read + '_ {
        Counted { reader: self.reader, task }
    }
}

/// One part of a form.
struct Part {
    name: &'static str,
    file: &'static str,
    kind: &'static str,
    upload: Upload,
}

impl Part {
    fn of(name: &'static str, file: &'static str, kind: &'static str, upload: Upload) -> Self {
        Part { name, file, kind, upload }
    }

    fn text(name: &'static str, file: &'static str, kind: &'static str, text: &str) -> Self {
        let (length, reader) = (text.len() as u64, Box::new(Cursor::new(text.to_owned())));
        Part::of(name, file, kind, Upload { content_type: kind.to_owned(), length, reader })
    }
}

struct Counted<'a> {
    reader: Box<dyn Read>,
    task: &'a Task,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.task.advance(count as u64);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Ui;

    #[test]
    fn a_form_has_the_length_it_announces_and_both_parts() {
        let folder = tempfile::tempdir().unwrap();
        let component = folder.path().join("a.wasm");
        std::fs::write(&component, b"\0asm\r\n--x").unwrap();
        let upload = Upload::function(&component, "name = \"a\"").unwrap();
        let boundary = upload.content_type.split_once("boundary=").unwrap().1.to_owned();
        let (length, mut bytes) = (upload.length, Vec::new());
        let task = Ui::new(true).upload("x", length);
        upload.counted(&task).read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, length);
        let text = String::from_utf8(bytes).unwrap();
        let parts: Vec<_> = text.split(&format!("--{boundary}")).collect();
        assert_eq!((parts.len(), parts[3]), (4, "--\r\n"));
        assert!(
            parts[1].contains("name=\"manifest\"")
                && parts[1].ends_with("\r\n\r\nname = \"a\"\r\n")
        );
        assert!(
            parts[2].contains("name=\"component\"")
                && parts[2].ends_with("\r\n\r\n\0asm\r\n--x\r\n")
        );
    }

    #[test]
    fn what_is_no_file_or_empty_is_refused_early() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty");
        std::fs::write(&empty, b"").unwrap();
        for path in [folder.path(), &empty, &folder.path().join("missing")] {
            assert_eq!(Upload::file(path).err().unwrap().exit_code(), 2, "{path:?}");
        }
    }
}
