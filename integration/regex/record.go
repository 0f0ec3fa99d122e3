// What Go makes of the patterns in tests/unit/flanneld_patterns.json: for each the numbers of the subjects that match, or the error.
//
//	go run integration/regex/record.go tests/unit/flanneld_patterns.json
//
// writes the file again. To add a pattern, add a line with it and null.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
)

func text(value any) string {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		panic(err)
	}
	return string(bytes.TrimSpace(out.Bytes()))
}

func main() {
	var table struct {
		Subjects []string `json:"subjects"`
		Patterns [][2]any `json:"patterns"`
	}
	content, err := os.ReadFile(os.Args[1])
	if err != nil {
		panic(err)
	}
	if err := json.Unmarshal(content, &table); err != nil {
		panic(err)
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, "{\"subjects\": %s,\n \"patterns\": [", text(table.Subjects))
	for number, row := range table.Patterns {
		pattern := row[0].(string)
		var found any
		if compiled, err := regexp.Compile(pattern); err != nil {
			found = err.Error()
		} else {
			matching := []int{}
			for index, subject := range table.Subjects {
				if compiled.MatchString(subject) {
					matching = append(matching, index)
				}
			}
			found = matching
		}
		separator := ",\n  "
		if number == 0 {
			separator = "\n  "
		}
		fmt.Fprintf(&out, "%s%s", separator, text([]any{pattern, found}))
	}
	out.WriteString("\n ]}\n")
	if err := os.WriteFile(os.Args[1], out.Bytes(), 0o644); err != nil {
		panic(err)
	}
}
