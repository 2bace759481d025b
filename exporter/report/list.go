package report

import (
	"bytes"
	"fmt"
	"io"
	"time"

	"tcpcoroner/evidence"
)

// List writes a table of incidents in the order given, with times in zone. The
// verdict stands last and is not cut, so that it can be searched for.
func List(w io.Writer, all []evidence.Summary, zone *time.Location) error {
	var table bytes.Buffer
	if len(all) == 0 {
		table.WriteString("no incidents: no trigger has fired since the oldest one was dropped\n")
	} else {
		writeTable(&table, "", rows(all, zone))
	}
	if _, err := w.Write(table.Bytes()); err != nil {
		return fmt.Errorf("write list of %d incidents: %w", len(all), err)
	}
	return nil
}

func rows(all []evidence.Summary, zone *time.Location) [][]string {
	table := [][]string{{"INCIDENT", "TIME", "TRIGGER", "RESETS", "FLOWS", "VERDICT"}}
	for _, s := range all {
		table = append(table, []string{
			clean(s.ID), s.Time.In(zone).Format("2006-01-02 15:04:05 MST"), clean(s.Trigger), count(s.Resets), count(s.Flows),
			clean(s.Verdict) + " " + stands(evidence.Claim{Confidence: s.Confidence, Benign: s.Benign}),
		})
	}
	return table
}
