package hostilecaller

// attempt is one way to become more.
type attempt struct {
	group string
	name  string
	tries string // what it would gain
	fails string // the way must contain it
	do    func(*attacker) string
}

// attempts are all of them, in the order they are made.
func attempts() []attempt {
	var all []attempt
	for _, g := range []struct {
		name string
		list []attempt
	}{
		{"Directories, by descriptor", byDescriptor()},
		{"Mount targets and requests", byRequest()},
		{"Files of the host, from an own sandbox", fromInside()},
		{"Another's sandbox", othersSandbox()},
		{"By a child", children()},
		{"By a sandbox's own socket", ownSockets()},
		{"Another's approvals", othersApprovals()},
		{"Another's agents, homes and records", othersAgents()},
		{"Secrets", othersSecrets()},
		{"Images and volumes", imagesAndVolumes()},
		{"The ceiling", ceiling()},
		{"Names, labels, environment", names()},
		{"The operator's doings", operators()},
		{"The socket itself", socket()},
		{"Beside the socket", beside()},
		{"More than its share", share()},
		{"Races", races()},
	} {
		for _, a := range g.list {
			a.group = g.name
			all = append(all, a)
		}
	}
	return all
}
