//go:build tools

// Package h2spec pins the tool that test_h2spec.py builds.
package h2spec

import _ "github.com/summerwind/h2spec/cmd/h2spec"
