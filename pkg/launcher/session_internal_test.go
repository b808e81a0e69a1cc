package launcher

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFirstBytes(t *testing.T) {
	many := strings.Split(strings.Repeat("a", 40), "")
	for _, tt := range []struct {
		name string
		args []string
		most int
		want []string
		cut  bool
	}{
		{"all", []string{"sh", "-c", "x"}, 8, []string{"sh", "-c", "x"}, false},
		{"none", nil, 8, []string{}, false},
		{"within an argument", []string{"sh", "-c", "abcdef"}, 10, []string{"sh", "-c", "abc"}, true},
		{"between arguments", []string{"sh", "-c"}, 3, []string{"sh"}, true},
		{"between characters", []string{"aéé"}, 4, []string{"aé"}, true},
		{"empty ones", []string{"", "", ""}, 2, []string{"", ""}, true},
		{"many", many, 20, many[:10], true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, cut := firstBytes(tt.args, tt.most)
			if diff := cmp.Diff(tt.want, got); diff != "" || cut != tt.cut {
				t.Errorf("cut = %v, want %v (-want +got):\n%s", cut, tt.cut, diff)
			}
		})
	}
}
