//! The `#[handler]` attribute of `sandpiper-guest`. Use it through that crate.

use proc_macro::TokenStream;
use proc_macro2::{Ident, Span};
use quote::quote;
use syn::{Error, ItemFn, parse_macro_input, spanned::Spanned};

/// Makes a function the one that answers requests.
///
/// The function takes a `Request` and returns a `Response` or a `Result<Response>`. It stays an
/// ordinary function, so tests can call it; for WebAssembly it is also exported as
/// `wasi:http/incoming-handler`. A crate has one handler: route inside it by `request.path()`.
///
/// ```
/// use sandpiper_guest::prelude::*;
///
/// #[handler]
/// fn greet(request: Request) -> Result<Response> {
///     Ok(Response::text(format!("hello from {}", request.path())))
/// }
///
/// let response = greet(testing::get("/here"))?;
/// assert_eq!(response.body(), b"hello from /here");
/// # Ok::<(), Error>(())
/// ```
#[proc_macro_attribute]
pub fn handler(arguments: TokenStream, item: TokenStream) -> TokenStream {
    let function = parse_macro_input!(item as ItemFn);
    let arguments = proc_macro2::TokenStream::from(arguments);
    match check(&arguments, &function) {
        Ok(()) => expand(&function),
        Err(error) => {
            let error = error.into_compile_error();
            quote!(#function #error).into()
        }
    }
}

fn check(arguments: &proc_macro2::TokenStream, function: &ItemFn) -> Result<(), Error> {
    let signature = &function.sig;
    if !arguments.is_empty() {
        return Err(Error::new(arguments.span(), "#[handler] takes no arguments"));
    }
    if let Some(token) = &signature.asyncness {
        let message = "a handler is not async: calls to models already suspend the sandbox, \
                       which serves one request";
        return Err(Error::new(token.span(), message));
    }
    if !signature.generics.params.is_empty() {
        return Err(Error::new(signature.generics.span(), "a handler cannot be generic"));
    }
    if signature.inputs.len() != 1 || signature.receiver().is_some() {
        let message = "a handler takes one argument, the `Request`";
        return Err(Error::new(signature.ident.span(), message));
    }
    Ok(())
}

fn expand(function: &ItemFn) -> TokenStream {
    let name = &function.sig.ident;
    // Names of ours that a handler's own name cannot meet, whatever it is called.
    let [request, out] = ["request", "out"].map(|name| Ident::new(name, Span::mixed_site()));
    let exported = quote! {
        // The signature is checked on every target, so that `cargo test` finds a wrong one.
        const _: fn(::sandpiper_guest::Request) -> ::sandpiper_guest::Response =
            |#request| ::sandpiper_guest::__private::answer(#name, #request);

        #[cfg(target_family = "wasm")]
        const _: () = {
            struct __SandpiperExported;

            impl ::sandpiper_guest::__private::Guest for __SandpiperExported {
                fn handle(
                    #request: ::sandpiper_guest::__private::IncomingRequest,
                    #out: ::sandpiper_guest::__private::ResponseOutparam,
                ) {
                    ::sandpiper_guest::__private::serve(#name, #request, #out);
                }
            }

            ::sandpiper_guest::__private::export!(__SandpiperExported);
        };
    };
    quote!(#function #exported).into()
}
