//! Frames as properties and golden files, the handshake as a table, connections as stories on loopback.

mod codec;
mod handshake;
mod network;
mod samples;
