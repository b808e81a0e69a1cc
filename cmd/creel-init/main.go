// Command creel-init is PID 1 of a sandbox; see pkg/agentinit/inside.
package main

import (
	"github.com/creel-sandbox/creel/pkg/agentinit/inside"
)

func main() { inside.Main(inside.Args()) }
