package exporter

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"

	"go.opentelemetry.io/contrib/exporters/autoexport"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// The signals, as outbox entries name them.
const (
	SignalTraces = "traces"
	SignalLogs   = "logs"
)

var signals = []string{SignalTraces, SignalLogs}

// configured tells whether the environment asks for a signal. An exporter that
// is named wins over an endpoint that is set.
func configured(getenv func(string) string, signal string) bool {
	if strings.EqualFold(getenv("OTEL_SDK_DISABLED"), "true") {
		return false
	}
	if name := getenv("OTEL_" + strings.ToUpper(signal) + "_EXPORTER"); name != "" {
		return name != "none"
	}
	return setting(getenv, signal, "ENDPOINT") != ""
}

// setting reads an OTLP setting: the signal's own, else the common one.
func setting(getenv func(string) string, signal, name string) string {
	if v := getenv("OTEL_EXPORTER_OTLP_" + strings.ToUpper(signal) + "_" + name); v != "" {
		return v
	}
	return getenv("OTEL_EXPORTER_OTLP_" + name)
}

// endpoint says where a signal goes, for people: without credentials.
func endpoint(getenv func(string) string, signal string) string {
	if name := getenv("OTEL_" + strings.ToUpper(signal) + "_EXPORTER"); name != "" && name != "otlp" {
		return name
	}
	where, protocol := setting(getenv, signal, "ENDPOINT"), protocol(getenv, signal)
	if where == "" {
		where = "http://localhost:4318"
		if protocol == "grpc" {
			where = "http://localhost:4317"
		}
	}
	if u, err := url.Parse(where); err == nil {
		where = u.Redacted()
	}
	return where + " (" + protocol + ")"
}

func protocol(getenv func(string) string, signal string) string {
	if p := setting(getenv, signal, "PROTOCOL"); p != "" {
		return p
	}
	return "http/protobuf"
}

// hint explains the usual mistake: the port of one protocol, the other spoken.
func hint(getenv func(string) string, signal string) string {
	u, err := url.Parse(setting(getenv, signal, "ENDPOINT"))
	switch p := protocol(getenv, signal); {
	case err != nil:
		return ""
	case u.Port() == "4317" && p != "grpc":
		return ": port 4317 usually speaks grpc, this is " + p + ": set OTEL_EXPORTER_OTLP_PROTOCOL=grpc"
	case u.Port() == "4318" && p == "grpc":
		return ": port 4318 usually speaks http/protobuf, this is grpc: set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"
	}
	return ""
}

// client delivers one signal and can be replaced by a fresh one.
type client struct {
	signal string
	traces sdktrace.SpanExporter
	logs   sdklog.Exporter
}

// dial makes the exporter that the environment describes. It does not connect.
func dial(ctx context.Context, signal string) (c client, err error) {
	c.signal = signal
	if signal == SignalTraces {
		c.traces, err = autoexport.NewSpanExporter(ctx)
	} else {
		c.logs, err = autoexport.NewLogExporter(ctx)
	}
	if err != nil {
		return c, fmt.Errorf("set up OpenTelemetry %s to %s: %w: check the OTEL_ variables", signal, endpoint(os.Getenv, signal), err)
	}
	return c, nil
}

func (c client) shutdown(ctx context.Context) error {
	var err error
	if c.traces != nil {
		err = c.traces.Shutdown(ctx)
	}
	if c.logs != nil {
		err = errors.Join(err, c.logs.Shutdown(ctx))
	}
	return err
}
