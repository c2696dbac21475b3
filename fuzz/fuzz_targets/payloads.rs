#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rusty_raft_fuzz::payloads(data));
