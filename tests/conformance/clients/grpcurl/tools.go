//go:build tools

// Package grpcurl pins the tool that test_grpcurl.py builds.
package grpcurl

import _ "github.com/fullstorydev/grpcurl/cmd/grpcurl"
