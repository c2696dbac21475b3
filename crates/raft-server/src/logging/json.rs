//! Lines as etcd's logger `zap` writes them.

use std::fmt;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

/// Formats an event as `{"level":…,"ts":…,"caller":…,"msg":…, its fields}`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Zap;

/// The fields of an event.
#[derive(Default)]
struct Fields {
    message: String,
    others: Map<String, Value>,
}

impl Fields {
    fn add(&mut self, field: &Field, value: Value) {
        let name = match field.name() {
            // Names of zap's own.
            name @ ("level" | "ts" | "caller" | "msg") => format!("{name}_"),
            name => name.to_owned(),
        };
        self.others.insert(name, value);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        } else {
            self.add(field, format!("{value:?}").into());
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.add(field, value.into());
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value.into());
    }
}

impl<S, N> FormatEvent<S, N> for Zap
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        let level = match *metadata.level() {
            Level::ERROR => "error",
            Level::WARN => "warn",
            Level::INFO => "info",
            Level::DEBUG | Level::TRACE => "debug",
        };
        let mut ts = String::new();
        SystemTime.format_time(&mut Writer::new(&mut ts))?;
        let file = metadata.file().unwrap_or_default();
        // As zap does, the file's folder and name.
        let file = file.rmatch_indices('/').nth(1).map_or(file, |(at, _)| &file[at + 1..]);
        let caller = format!("{file}:{}", metadata.line().unwrap_or_default());
        let text = |text: &str| Value::from(text).to_string();
        write!(
            writer,
            r#"{{"level":"{level}","ts":{},"caller":{},"msg":{}"#,
            text(&ts),
            text(&caller),
            text(&fields.message)
        )?;
        for (name, value) in &fields.others {
            write!(writer, ",{}:{value}", text(name))?;
        }
        for span in context.event_scope().into_iter().flatten() {
            let extensions = span.extensions();
            if let Some(fields) = extensions.get::<FormattedFields<N>>() {
                write!(writer, ",{}:{}", text(span.name()), text(fields))?;
            }
        }
        writeln!(writer, "}}")
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_is_an_object_with_the_keys_of_zap() {
        let kept = Kept::default();
        let writer = kept.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .event_format(Zap)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(count = 3u64, msg = "x\n", who = %"n1", "it \"is\" {}", "late");
        });
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.starts_with(r#"{"level":"warn","ts":"2"#), "{text}");
        let line: Map<String, Value> = serde_json::from_str(&text).unwrap();
        assert_eq!(line["msg"], "it \"is\" late");
        assert_eq!(line["msg_"], "x\n");
        assert_eq!((&line["count"], &line["who"]), (&3.into(), &"n1".into()));
        assert!(line["caller"].as_str().unwrap().starts_with("logging/json.rs:"), "{text}");
    }
}
