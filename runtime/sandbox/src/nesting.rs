//! Types of components nest, and those who read them (wasmparser, wit-component, the compiler) call themselves at each
//! level. A stack that overflows ends the process, so that the depth is bounded here before any of them looks, and
//! they get a stack that holds as many levels.

use std::io;

use wasmparser::{Parser, Payload};

use crate::upload::UploadError;

/// The types of one section. A level takes three bytes at least; those of all of WASI together take 20 KiB.
const TYPES_BYTES_MAX: usize = 128 << 10;
/// What is within a component within a component, and so on.
const COMPONENTS_MAX: usize = 64;
/// Measured, a level takes two to four KiB of stack. Memory is taken only as far as it is used.
const STACK_BYTES: usize = 256 << 20;

/// Refuses bytes in which types could nest too deeply. What is malformed otherwise is left to those who read it.
pub(crate) fn check(bytes: &[u8]) -> Result<(), UploadError> {
    let too_deep = || {
        let limit_kib = TYPES_BYTES_MAX >> 10;
        let text = format!("one of its type sections is larger than {limit_kib} KiB");
        Err(UploadError::Malformed(text))
    };
    let mut depth = 0usize;
    for payload in Parser::new(0).parse_all(bytes) {
        let Ok(payload) = payload else { break };
        match payload {
            Payload::ComponentTypeSection(types) if types.range().len() > TYPES_BYTES_MAX => {
                return too_deep();
            }
            Payload::CoreTypeSection(types) if types.range().len() > TYPES_BYTES_MAX => {
                return too_deep();
            }
            // A component of its own, which tells the types of a core module.
            Payload::CustomSection(section)
                if section.name().starts_with("component-type")
                    && section.data().len() > TYPES_BYTES_MAX =>
            {
                return too_deep();
            }
            Payload::ComponentSection { .. } | Payload::ModuleSection { .. } => {
                depth += 1;
                if depth > COMPONENTS_MAX {
                    let text = format!("components nest more than {COMPONENTS_MAX} deep");
                    return Err(UploadError::Malformed(text));
                }
            }
            Payload::End(_) => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

/// Runs `work` where a nesting that [`check`] lets through has room.
///
/// # Errors
/// The thread could not be made; `work` that panics gives `Ok(None)`.
pub(crate) fn on_deep_stack<T: Send>(
    name: &str,
    work: impl FnOnce() -> T + Send,
) -> io::Result<Option<T>> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES);
        Ok(thread.spawn_scoped(scope, work)?.join().ok())
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A type section of a component in which `levels` component types lie within each other.
    pub(crate) fn nested(levels: usize) -> Vec<u8> {
        let mut types = vec![0x01];
        types.extend([0x41, 0x01, 0x01].repeat(levels));
        types.extend([0x41, 0x00]);
        section(0x07, &types)
    }

    pub(crate) fn section(id: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![id];
        let mut length = content.len();
        loop {
            let low = (length & 0x7f) as u8;
            length >>= 7;
            bytes.push(if length > 0 { low | 0x80 } else { low });
            if length == 0 {
                break;
            }
        }
        bytes.extend_from_slice(content);
        bytes
    }

    #[test]
    fn a_large_section_of_types_is_refused_and_a_small_one_is_not() {
        let component = |levels| [b"\0asm\x0d\0\x01\0".to_vec(), nested(levels)].concat();
        assert_eq!(check(&component(40_000)), Ok(()));
        assert!(matches!(check(&component(60_000)), Err(UploadError::Malformed(_))));
        let custom = |levels| {
            let content = [b"\x10component-type:x".to_vec(), component(levels)].concat();
            [b"\0asm\x01\0\0\0".to_vec(), section(0, &content)].concat()
        };
        assert_eq!(check(&custom(40_000)), Ok(()));
        assert!(matches!(check(&custom(60_000)), Err(UploadError::Malformed(_))));
    }
}
