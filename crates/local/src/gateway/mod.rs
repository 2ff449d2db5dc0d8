//! API Gateway: the WebSocket side and the management API.
