//! The paths under which the API is reached.
//!
//! Implements ["Disable the default endpoint for WebSocket
//! APIs"](https://docs.aws.amazon.com/apigateway/latest/developerguide/websocket-api-disable-default-endpoint.html) and ["Map
//! API stages to a custom domain name for WebSocket
//! APIs"](https://docs.aws.amazon.com/apigateway/latest/developerguide/websocket-api-mappings.html). On AWS the default
//! endpoint, whose path is the stage, is a host, and each custom domain, whose paths are the keys of its mappings, is
//! another; here all of them are paths of one port.

use std::collections::BTreeSet;

/// The default endpoint and the custom domains.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Paths {
    /// The path of the default endpoint, unless that is disabled.
    pub stage: Option<String>,
    /// The keys of the custom domains' mappings, of which an empty one is the root. Without any mapping the root is as
    /// with that.
    pub mapping_keys: BTreeSet<String>,
}

impl Paths {
    /// Whether a client may connect at this path, which has no `/` at its ends.
    pub(super) fn connect(&self, path: &str) -> bool {
        self.have(path) || (path.is_empty() && self.mapping_keys.is_empty())
    }

    /// Whether this path may stand in front of `/@connections`. The root may when a mapping says so, or when there is
    /// nothing else; otherwise a caller that leaves out the stage would not be found out.
    pub(super) fn are_called(&self, path: &str) -> bool {
        self.have(path) || (path.is_empty() && self.mapping_keys.is_empty() && self.stage.is_none())
    }

    fn have(&self, path: &str) -> bool {
        self.stage.as_deref() == Some(path) || self.mapping_keys.contains(path)
    }

    /// The path that functions and people are told of, with its `/`, or nothing for the root. That of the stage, else the
    /// first of the mappings.
    #[must_use]
    pub fn usual(&self) -> String {
        let path = self.stage.as_ref().or_else(|| self.mapping_keys.first());
        path.filter(|path| !path.is_empty()).map(|path| format!("/{path}")).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where of the stage, the root and a mapping with a key clients may connect, and callers call.
    fn served(stage: Option<&str>, mapping_keys: &[&str]) -> (String, String) {
        let mapping_keys = mapping_keys.iter().map(|&key| key.to_owned()).collect();
        let paths = Paths { stage: stage.map(str::to_owned), mapping_keys };
        let text = |serves: &dyn Fn(&str) -> bool| {
            ["dev", "", "chat", "other"].into_iter().filter(|path| serves(path)).collect::<Vec<_>>().join("|")
        };
        (text(&|path| paths.connect(path)), text(&|path| paths.are_called(path)))
    }

    #[test]
    fn each_way_to_the_api_has_its_path() {
        let texts = |one: &str, other: &str| (one.to_owned(), other.to_owned());
        assert_eq!(served(Some("dev"), &[]), texts("dev|", "dev"));
        assert_eq!(served(Some("dev"), &[""]), texts("dev|", "dev|"));
        assert_eq!(served(Some("dev"), &["chat"]), texts("dev|chat", "dev|chat"));
        assert_eq!(served(Some("dev"), &["", "chat"]), texts("dev||chat", "dev||chat"));
        assert_eq!(served(None, &[]), texts("", ""));
        assert_eq!(served(None, &["chat"]), texts("chat", "chat"));
        assert_eq!(served(None, &["dev"]), texts("dev", "dev"));
    }

    #[test]
    fn the_usual_path_is_one_that_is_served() {
        let usual = |stage: Option<&str>, keys: &[&str]| {
            let mapping_keys = keys.iter().map(|&key| key.to_owned()).collect();
            Paths { stage: stage.map(str::to_owned), mapping_keys }.usual()
        };
        assert_eq!((usual(Some("dev"), &["chat"]).as_str(), usual(None, &["chat"]).as_str()), ("/dev", "/chat"));
        assert_eq!((usual(None, &["", "chat"]).as_str(), usual(None, &[]).as_str()), ("", ""));
    }
}
