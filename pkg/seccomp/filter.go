package seccomp

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Filter is a classic BPF program for seccomp(2).
type Filter []unix.SockFilter

// Bytes is the program as an array of struct sock_filter, 8 bytes each, in
// the byte order of both supported architectures (little-endian).
func (f Filter) Bytes() []byte {
	b := make([]byte, 0, 8*len(f))
	for _, i := range f {
		b = binary.LittleEndian.AppendUint16(b, i.Code)
		b = append(b, i.Jt, i.Jf)
		b = binary.LittleEndian.AppendUint32(b, i.K)
	}
	return b
}

// ParseFilter is the inverse of Bytes. The program is not checked.
func ParseFilter(b []byte) (Filter, error) {
	if len(b)%8 != 0 || len(b) > 8*maxInstructions {
		return nil, fmt.Errorf("%d bytes are no filter: want at most %d instructions of 8 bytes", len(b), maxInstructions)
	}
	f := make(Filter, len(b)/8)
	for i := range f {
		w := b[8*i:]
		f[i] = unix.SockFilter{Code: binary.LittleEndian.Uint16(w), Jt: w[2], Jf: w[3], K: binary.LittleEndian.Uint32(w[4:])}
	}
	return f, nil
}

// Digest is the SHA-256 of Bytes, in hexadecimal.
func (f Filter) Digest() string {
	sum := sha256.Sum256(f.Bytes())
	return hex.EncodeToString(sum[:])
}

// Disassemble is the program as text, one numbered instruction a line.
func (f Filter) Disassemble() string {
	var b strings.Builder
	for pc, i := range f {
		fmt.Fprintf(&b, "%4d  %s\n", pc, disassemble(pc, i))
	}
	return b.String()
}

func disassemble(pc int, i unix.SockFilter) string {
	switch i.Code {
	case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
		return "ld   " + field(i.K)
	case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
		return fmt.Sprintf("and  %#x", i.K)
	case unix.BPF_RET | unix.BPF_K:
		return "ret  " + Action(i.K).String()
	case unix.BPF_JMP | unix.BPF_JA:
		return fmt.Sprintf("ja   %d", pc+1+int(i.K))
	case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
		return fmt.Sprintf("jeq  %#x, %d, %d", i.K, pc+1+int(i.Jt), pc+1+int(i.Jf))
	case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
		return fmt.Sprintf("jge  %#x, %d, %d", i.K, pc+1+int(i.Jt), pc+1+int(i.Jf))
	}
	return fmt.Sprintf("code %#x, %d, %d, %#x", i.Code, i.Jt, i.Jf, i.K)
}

func field(off uint32) string {
	switch {
	case off == offNr:
		return "nr"
	case off == offArch:
		return "arch"
	case off >= offArgs && off < offArgs+48 && off%4 == 0:
		half := "lo"
		if off%8 == 4 {
			half = "hi"
		}
		return fmt.Sprintf("arg%d.%s", (off-offArgs)/8, half)
	}
	return fmt.Sprintf("[%d]", off)
}
