package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"
)

const defaultData = "/var/lib/tcpcoroner/incidents"

func runCommand(e *env) *cobra.Command {
	var configFile, data string
	var check bool
	c := &cobra.Command{
		Use: "run [--config FILE] [--data DIR]", Short: "record, in the foreground", Args: usageArgs(cobra.NoArgs),
		Long: "run is the daemon. It records the network namespace it is started in until it gets SIGINT or SIGTERM. Several can\n" +
			"run side by side, each with its own --data and --socket.\n\n" +
			"Incidents go to a tracing backend if the standard OTEL_EXPORTER_OTLP_* variables are set.",
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := loadConfig(configFile)
			if err != nil {
				return err
			}
			if check {
				_, err := fmt.Fprintln(e.stdout, "configuration is valid")
				return err
			}
			return e.record(c.Context(), cfg, data)
		},
	}
	c.Flags().StringVar(&configFile, "config", "", "configuration file (default "+defaultConfigFile+" if it exists)")
	c.Flags().StringVar(&data, "data", defaultData, "directory for incidents")
	c.Flags().BoolVar(&check, "check", false, "check the configuration and stop")
	return c
}

func (e *env) record(ctx context.Context, cfg config, data string) error {
	coarseTimers()
	limitMemory(e.getenv)
	allowThreads(e.getenv)
	log := slog.New(slog.NewTextHandler(e.stderr, nil))
	d, err := build(ctx, cfg, data, e.socket, log)
	if err != nil {
		return err
	}
	ready := func() {
		log.Info("recording", "version", version, "socket", e.socket, "data", data,
			"memory", size(d.sizes.memory).String(), "export", d.exportLine())
		forgetStart()
	}
	return errors.Join(d.run(ctx, ready), d.close())
}
