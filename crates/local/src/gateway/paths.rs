//! The paths of the API.
//!
//! This module implements ["Disable the default endpoint for WebSocket
//! APIs"](https://docs.aws.amazon.com/apigateway/latest/developerguide/websocket-api-disable-default-endpoint.html) and ["Map
//! API stages to a custom domain name for WebSocket
//! APIs"](https://docs.aws.amazon.com/apigateway/latest/developerguide/websocket-api-mappings.html).
//!
//! On AWS the default endpoint is one host, and its path is the stage. Each custom domain is another host, and its
//! paths are the keys of its mappings. Here all of them are paths of one port.

use std::collections::BTreeSet;

/// The default endpoint and the custom domains.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Paths {
    /// The path of the default endpoint. `None` if the endpoint is disabled.
    pub stage: Option<String>,
    /// The keys of the custom domains' mappings. An empty key is the root. Without any mapping, clients can use the
    /// root as well.
    pub mapping_keys: BTreeSet<String>,
}

impl Paths {
    /// Returns whether a client may connect at this path. The path has no `/` at its ends.
    pub(super) fn serves_clients(&self, path: &str) -> bool {
        self.contains(path) || (path.is_empty() && self.mapping_keys.is_empty())
    }

    /// Returns whether this path may stand in front of `/@connections`.
    ///
    /// The root is allowed only if a mapping names it or if there is no other path. Otherwise nobody would notice a
    /// caller that leaves out the stage.
    pub(super) fn serves_callers(&self, path: &str) -> bool {
        self.contains(path) || (path.is_empty() && self.mapping_keys.is_empty() && self.stage.is_none())
    }

    fn contains(&self, path: &str) -> bool {
        self.stage.as_deref() == Some(path) || self.mapping_keys.contains(path)
    }

    /// Returns the path that functions and people are told: the stage's, else the first mapping's. It begins with `/`,
    /// except that the root is empty.
    #[must_use]
    pub fn primary(&self) -> String {
        let path = self.stage.as_ref().or_else(|| self.mapping_keys.first());
        path.filter(|path| !path.is_empty()).map(|path| format!("/{path}")).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lists the paths where clients may connect, and the paths where callers may call.
    fn served(stage: Option<&str>, mapping_keys: &[&str]) -> (String, String) {
        let mapping_keys = mapping_keys.iter().map(|&key| key.to_owned()).collect();
        let paths = Paths { stage: stage.map(str::to_owned), mapping_keys };
        let text = |serves: &dyn Fn(&str) -> bool| {
            ["dev", "", "chat", "other"].into_iter().filter(|path| serves(path)).collect::<Vec<_>>().join("|")
        };
        (text(&|path| paths.serves_clients(path)), text(&|path| paths.serves_callers(path)))
    }

    #[test]
    fn the_stage_and_each_mapping_have_a_path() {
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
    fn the_primary_path_is_served() {
        let primary = |stage: Option<&str>, keys: &[&str]| {
            let mapping_keys = keys.iter().map(|&key| key.to_owned()).collect();
            Paths { stage: stage.map(str::to_owned), mapping_keys }.primary()
        };
        assert_eq!((primary(Some("dev"), &["chat"]).as_str(), primary(None, &["chat"]).as_str()), ("/dev", "/chat"));
        assert_eq!((primary(None, &["", "chat"]).as_str(), primary(None, &[]).as_str()), ("", ""));
    }
}
