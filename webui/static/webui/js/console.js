// Everything that pages of the console run. Each module defines its own elements; pages work without any of them,
// except that nothing changes by itself.
import "./elements.js";
import "./theme.js";
import "./time.js";
import "./live.js";
import "./copy.js";
import "./forms.js";
import "./requests.js";
