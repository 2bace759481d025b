package evidence

import (
	"encoding/json"
	"testing"
)

func TestHarmCountsByName(t *testing.T) {
	var all, back HarmCounts
	for k := range HarmKinds {
		all[k] = uint64(k) + 1
	}
	text, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &back); err != nil || back != all {
		t.Errorf("%s is read as %v, %v", text, back, err)
	}
	text, err = json.Marshal(HarmCounts{HarmAbandoned: 2, HarmRefused: 3})
	if want := `{"abandoned":2,"refused":3}`; err != nil || string(text) != want {
		t.Errorf("%s, %v; want %s", text, err, want)
	}
	for _, text := range []string{`{"nothing":1}`, `[1,2]`, `{"scan":-1}`} {
		if err := json.Unmarshal([]byte(text), &back); err == nil {
			t.Errorf("%s is read as %v", text, back)
		}
	}
}
